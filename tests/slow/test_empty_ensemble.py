"""Our ensemble beside an empty one, in one run."""

import json
from pathlib import Path

import pytest
from tests.integration.test_executor_scripts import Script

from tritonembed_perf.families.registry import load_cases


def test_both_ensembles_are_measured(script: Script, tmp_path: Path) -> None:
    model, report = tmp_path / "model", tmp_path / "report.json"
    load_cases()["static_new_name"].write(model)
    # perf_analyzer fails if a window has no whole request, and a busy machine can stand still for a while.
    options = ("--loads", "50x1@2", "--rounds", "1", "--seconds", "2", "--json", str(report))
    done = script("empty_ensemble", str(model), *options, "--", "--device", "cpu")
    assert done.returncode == 0, done.stderr[-1000:]
    [row] = json.loads(report.read_text())["rows"]
    for way in ("empty", "ours"):
        assert row[way]["requests_per_second"] > 0
        assert row[way]["p50_ms"] > 0
        assert set(row[way]["cpu_us"]) == {"tritonserver", "tokenizer", "embedder"}
        assert all(spent > 0 for spent in row[way]["cpu_us"].values())
    # The empty models run: the difference of an embedder that does something is large.
    assert row["empty"]["cpu_us"]["embedder"] < row["ours"]["cpu_us"]["embedder"]
    assert row["ours"]["ratios"]["all_cpu_us"] == pytest.approx(row["ours"]["all_cpu_us"] / row["empty"]["all_cpu_us"])
