"""Figures of the scripts that measure the executor without Triton."""

import json
import re
from pathlib import Path

from tests.integration.test_executor_scripts import Script
from tests.models import ModelShelf


def test_the_time_of_a_batch_is_shown_by_operator(script: Script, shelf: ModelShelf) -> None:
    done = script("engine", "profile", str(shelf("bert")), "--executor", "direct", "--shape", "4x8")
    assert done.returncode == 0, done.stderr[-1000:]
    assert "executor: direct" in done.stdout
    assert re.search(r"^4 x 8: +\d+\.\d\d ms per batch$", done.stdout, re.MULTILINE)
    operators = re.findall(r"^ +(\d+\.\d\d) ms +(\d+\.\d) x  (\S+)$", done.stdout, re.MULTILINE)
    assert "aten::gelu" in [name for _, _, name in operators]
    times = [float(milliseconds) for milliseconds, _, _ in operators]
    assert times == sorted(times, reverse=True)


def test_precision_is_that_of_the_computing_type(script: Script, shelf: ModelShelf, tmp_path: Path) -> None:
    report = tmp_path / "precision.json"
    done = script(
        "engine", "precision", str(shelf("bert-cls")), "--vllm", '{"dtype": "bfloat16"}', "--json", str(report)
    )
    assert done.returncode == 0, done.stderr[-1000:]
    rows = json.loads(report.read_text())["rows"]
    assert [row["tokens"] for row in rows] == [1, 2, 5, 10, 20, 50, 100, 200, 512]
    assert all(0.999 < row["lowest"] <= row["median"] < 1 - 1e-7 for row in rows)


def test_lengths_end_at_vllms_maximum(script: Script, shelf: ModelShelf) -> None:
    done = script("engine", "precision", str(shelf("bert")), "--vllm", '{"max_model_len": 30}')
    assert done.returncode == 0, done.stderr[-1000:]
    assert re.findall(r"^ +(\d+) tokens: ", done.stdout, re.MULTILINE) == ["1", "2", "5", "10", "20", "30"]


def test_the_outputs_per_token_have_a_share_of_the_rate_without_them(
    script: Script, shelf: ModelShelf, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    done = script("token_outputs", "measure", str(shelf("bert")), "--shape", "4x16", "--json", str(report))
    assert done.returncode == 0, done.stderr[-1000:]
    rows = json.loads(report.read_text())["rows"]
    assert [row["outputs"] for row in rows] == ["without", "sparse", "multi_vector", "sparse + multi_vector"]
    assert rows[0]["share"] == 1.0
    assert all(row["share"] > 0 and row["sentences_per_second"] > 0 for row in rows)
