"""`tritonembed-bench` with a real Triton: a few seconds per command."""

import json
from pathlib import Path

import pytest

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
        assert (row["requests"], row["errors"], row["wrong"]) == (60, {}, 0)
        assert row["compared"] > 0
        assert row["server_cpu_seconds"] > 0
