"""The README's code blocks run as written, against the session's server in place of localhost:50050."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tritonembed_perf.server import RunningServer

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = re.findall(r"^tritonembed .*$", README, re.MULTILINE)


@pytest.mark.parametrize("number", range(3))
def test_a_python_block_runs_as_written(server: RunningServer, tmp_path: Path, number: int) -> None:
    block = PYTHON_BLOCKS[number].replace("localhost:50050", server.target)
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("number", range(4))
def test_a_command_runs_as_written(server: RunningServer, tmp_path: Path, number: int) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "first"}\n{"text": "second"}\n')
    command = COMMANDS[number].replace("tritonembed ", f"{Path(sys.executable).parent}/tritonembed ", 1)
    command = f"{command} --host 127.0.0.1 --port {server.grpc_port}"
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    if "vectors.npy" in command:
        assert (tmp_path / "vectors.npy").stat().st_size > 128


def test_the_readme_has_the_blocks_that_are_tested() -> None:
    assert len(PYTHON_BLOCKS) == 4  # the fourth runs in test_serve_http.py, against a manager
    assert len(COMMANDS) == 4
