"""The scripts that measure the executor without Triton: `python -m tritonembed_perf.engine_profile`."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.models import ModelShelf


def script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"tritonembed_perf.{name}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_time_of_a_batch_is_shown_by_operator(shelf: ModelShelf) -> None:
    done = script("engine_profile", str(shelf("bert")), "--shape", "4x8")
    assert done.returncode == 0, done.stderr[-1000:]
    assert "executor: direct" in done.stdout
    assert re.search(r"^4 x 8: +\d+\.\d\d ms a batch$", done.stdout, re.MULTILINE)
    operators = re.findall(r"^ +(\d+\.\d\d) ms +(\d+\.\d) x  (\S+)$", done.stdout, re.MULTILINE)
    assert "aten::gelu" in [name for _, _, name in operators]
    times = [float(milliseconds) for milliseconds, _, _ in operators]
    assert times == sorted(times, reverse=True)


def test_precision_is_that_of_the_type_it_computes_in(shelf: ModelShelf, tmp_path: Path) -> None:
    report = tmp_path / "precision.json"
    done = script("precision", str(shelf("bert-cls")), "--vllm", '{"dtype": "bfloat16"}', "--json", str(report))
    assert done.returncode == 0, done.stderr[-1000:]
    rows = json.loads(report.read_text())["rows"]
    assert [row["tokens"] for row in rows] == [1, 2, 5, 10, 20, 50, 100, 200, 512]
    assert all(0.999 < row["lowest"] <= row["median"] < 1 - 1e-7 for row in rows)


@pytest.mark.parametrize("name", ["roberta", "xlm-roberta"])
def test_models_that_count_positions_from_padding_agree_too(name: str, shelf: ModelShelf, tmp_path: Path) -> None:
    report = tmp_path / "precision.json"
    done = script("precision", str(shelf(name)), "--json", str(report))
    assert done.returncode == 0, done.stderr[-1000:]
    rows = json.loads(report.read_text())["rows"]
    assert [row["tokens"] for row in rows] == [1, 2, 5, 10, 20, 50, 64]
    assert all(row["lowest"] > 0.99999 for row in rows)


def test_lengths_end_where_vllm_is_told_to(shelf: ModelShelf) -> None:
    done = script("precision", str(shelf("bert")), "--vllm", '{"max_model_len": 30}')
    assert done.returncode == 0, done.stderr[-1000:]
    assert re.findall(r"^ +(\d+) tokens: ", done.stdout, re.MULTILINE) == ["1", "2", "5", "10", "20", "30"]


def test_a_batch_that_nothing_could_run_is_refused(shelf: ModelShelf) -> None:
    done = script("engine_profile", str(shelf("bert")), "--shape", "2x100000")
    assert done.returncode != 0
    line = "error: --shape 2x100000: the longest text of this model has 64 tokens"
    assert done.stderr.splitlines()[-1] == line
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", [("kernel_speed",), ("engine_speed", "model")])
def test_without_a_gpu_what_needs_one_is_one_line(command: tuple[str, ...]) -> None:
    done = script(*command)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == "error: there is no GPU"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (("engine_profile", "model", "--shape", "64"), "argument --shape: '64' is not SENTENCESxTOKENS"),
        (("engine_profile", "model", "--shape", "0x50"), "argument --shape: '0x50' is not SENTENCESxTOKENS"),
        (("precision", "model", "--vllm", "[1]"), "argument --vllm: '[1]' is no JSON object"),
        (("precision", "/no/such/model"), "error: there is no model folder model"),
        (("precision", ""), "error: model: String should have at least 1 character"),
    ],
)
def test_what_cannot_be_measured_is_one_line(command: tuple[str, ...], line: str) -> None:
    done = script(*command)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].endswith(line)
    assert "Traceback" not in done.stderr
