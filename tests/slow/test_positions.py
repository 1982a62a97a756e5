"""Models that count positions from the padding id on, compared with transformers at every length."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.models import ModelShelf


@pytest.mark.parametrize("name", ["roberta", "xlm-roberta"])
def test_models_that_count_positions_from_padding_agree_too(name: str, shelf: ModelShelf, tmp_path: Path) -> None:
    report = tmp_path / "precision.json"
    command = [sys.executable, "-m", "tritonembed_perf.scripts.engine", "precision", str(shelf(name))]
    command += ["--json", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-1000:]
    rows = json.loads(report.read_text())["rows"]
    assert [row["tokens"] for row in rows] == [1, 2, 5, 10, 20, 50, 64]
    assert all(row["lowest"] > 0.99999 for row in rows)
