"""`tritonembed-bench overhead` and `perf-analyzer` against a real Triton."""

import json
from pathlib import Path

import pytest
from tests.integration.test_bench import bench

from tritonembed_perf.server import RunningServer


def test_overhead_divides_a_requests_time_into_stages(server: RunningServer, model: Path, tmp_path: Path) -> None:
    path, plot = tmp_path / "overhead.json", tmp_path / "plot"
    where = ("--server", server.target, "--metrics", f"127.0.0.1:{server.metrics_port}", "--json", path, "--plot", plot)
    assert bench("overhead", "--model", model, *where, "--loads", "20x1@1,60x128@1,60x128@4", "--requests", 16) == 0
    report = json.loads(path.read_text())
    small, alone, at_once = rows = [row["milliseconds"] for row in report["rows"]]
    for stages in rows:
        assert all(stages[stage] > 0 for stage in ("client encode", "tokenizer", "embedder", "client decode"))
    # This is a difference of two means, which can vanish with large requests.
    assert small["wire"] > 0
    # For these, Triton measured only the hand-over, some hundred microseconds.
    assert alone["embedder"] > 3 * alone["between models"]
    assert at_once["embedder"] + at_once["embedder queue"] > 3 * at_once["between models"]
    assert at_once["embedder queue"] > 3 * alone["embedder queue"]
    assert (tmp_path / "plot.svg").exists()
    assert (tmp_path / "plot.png").exists()


def test_perf_analyzer_measures_the_loads(server: RunningServer, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "analyzed.json"
    # perf_analyzer fails if a window has no whole request, and a busy machine can stand still for a while.
    load = ("--loads", "20x4@2", "--seconds", 2)
    assert bench("perf-analyzer", "--model", model, "--server", server.target, "--json", path, *load) == 0
    [row] = json.loads(path.read_text())["rows"]
    assert (row["target"], row["load"]) == ("triton", "20x4@2")
    assert row["tokens_per_second"] == pytest.approx(80 * row["requests_per_second"])
    assert 0 < row["p50_ms"] <= row["p99_ms"]
    assert row["compute_ms"] > 0
