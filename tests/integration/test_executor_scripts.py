"""The scripts that measure the executor without Triton: `python -m tritonembed_perf.scripts.engine`."""

import subprocess
from collections.abc import Callable

import pytest
import torch
from tests.integration.preloaded import Preloaded
from tests.models import ModelShelf

Script = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def script(preloaded: Preloaded) -> Script:
    """Runs a script, given its name and its arguments."""
    return lambda name, *arguments: preloaded.run(f"tritonembed_perf.scripts.{name}", *arguments)


def test_an_impossible_batch_is_refused(script: Script, shelf: ModelShelf) -> None:
    done = script("engine", "profile", str(shelf("bert")), "--shape", "2x100000")
    assert done.returncode != 0
    line = "engine: --shape 2x100000: the longest text of this model has 64 tokens"
    assert done.stderr.splitlines()[-1] == line
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", [("kernel_speed",), ("engine", "speed", "model", "--device", "cuda")])
def test_without_a_gpu_scripts_that_need_one_fail_with_one_line(script: Script, command: tuple[str, ...]) -> None:
    done = script(*command)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == f"{command[0]}: there is no GPU"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (("engine", "profile", "model", "--shape", "64"), "engine: --shape: '64' is not SENTENCESxTOKENS"),
        (("engine", "profile", "model", "--shape", "0x50"), "engine: --shape: '0x50' is not SENTENCESxTOKENS"),
        (("engine", "precision", "model", "--vllm", "[1]"), "engine: --vllm: '[1]' is no JSON object"),
        (("engine", "precision", "/no/such/model"), "engine: there is no model folder model"),
        (("engine", "precision", ""), "engine: model: String should have at least 1 character"),
    ],
)
def test_an_impossible_measurement_is_one_line(script: Script, command: tuple[str, ...], line: str) -> None:
    done = script(*command)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].endswith(line)
    assert "Traceback" not in done.stderr
