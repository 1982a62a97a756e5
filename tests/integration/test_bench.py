"""`tritonembed-bench` against a real Triton: a few seconds of each of its commands."""

import json
from pathlib import Path

import pytest
import yaml

from tritonembed_perf.cli import main
from tritonembed_perf.server import RunningServer


def bench(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def test_run_measures_with_every_answer_checked_against_transformers(
    server: RunningServer, model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run.json"
    load = ("--requests", 60, "--batch-sizes", "1,8", "--concurrency", 4, "--distribution", "uniform", "--warm-up", 0)
    assert bench("run", "--server", server.target, "--model", model, "--reference", "model", "--json", path, *load) == 0
    report = json.loads(path.read_text())
    assert report["server"]["description"].startswith("triton ")
    for row in report["rows"]:
        assert (row["requests"], row["errors"], row["wrong_answers"]) == (60, {}, 0)
        assert row["answers_compared"] > 0
        assert row["server_cpu_seconds"] > 0


def test_overhead_parts_a_requests_time(server: RunningServer, model: Path, tmp_path: Path) -> None:
    path, plot = tmp_path / "overhead.json", tmp_path / "plot"
    where = ("--server", server.target, "--metrics", f"127.0.0.1:{server.metrics_port}", "--json", path, "--plot", plot)
    assert bench("overhead", "--model", model, *where, "--loads", "20x1@1,60x128@1,60x128@4", "--requests", 16) == 0
    report = json.loads(path.read_text())
    assert report["source"] == "statistics"
    small, alone, at_once = rows = [row["milliseconds"] for row in report["rows"]]
    for stages in rows:
        assert all(stages[stage] > 0 for stage in ("client encode", "tokenizer", "embedder", "client decode"))
    # The difference of two means: beside large requests it can vanish.
    assert small["wire"] > 0
    # Triton saw the hand-over of these alone, some hundred microseconds.
    assert alone["embedder"] > 3 * alone["between models"]
    assert at_once["embedder"] + at_once["embedder queue"] > 3 * at_once["between models"]
    assert at_once["embedder queue"] > 3 * alone["embedder queue"]
    assert (tmp_path / "plot.svg").exists()
    assert (tmp_path / "plot.png").exists()


def test_perf_analyzer_measures_the_shapes_of_a_scenario(server: RunningServer, model: Path, tmp_path: Path) -> None:
    scenario = {
        "description": "a moment",
        "load": "concurrency",
        "values": [2],
        "shapes": [{"tokens": 20, "sentences": 4}],
        "targets": ["triton"],
        # perf_analyzer fails when a window has no whole request, and a busy machine can stand still for a while.
        "window_seconds": 2.0,
    }
    path = tmp_path / "moment.yaml"
    path.write_text(yaml.safe_dump(scenario))
    out = tmp_path / "out"
    where = ("--server", server.target, "--scenario", path, "--out", out)
    assert bench("perf-analyzer", "--model", model, *where) == 0
    [result] = json.loads((out / "perf-analyzer.json").read_text())["scenarios"]
    [point] = result["points"]
    assert point["tokens_per_second"] == pytest.approx(80 * point["requests_per_second"])
    assert 0 < point["p50_ms"] <= point["p99_ms"]
    assert point["compute_ms"] > 0
    assert (out / "moment-tokens.png").exists()
