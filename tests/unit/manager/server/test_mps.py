"""When a server gets an MPS daemon, and what happens if the daemon or CUDA does not work."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tritonembed_manager.server import mps_shim
from tritonembed_manager.server import tritonserver as mps
from tritonembed_manager.server.life import is_worth_showing
from tritonembed_manager.server.repository import parse_config

SHARED = parse_config("instance_group { kind: KIND_GPU count: 2 }")
ALONE = parse_config("instance_group { kind: KIND_GPU count: 1 gpus: [0, 1] }")
ON_THE_CPU = parse_config("instance_group { kind: KIND_CPU count: 8 }")
COMMAND = ["tritonserver", "--model-repository=models"]


@pytest.fixture
def bin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the daemon, the only folder on PATH. The machine's own daemon is hidden."""
    monkeypatch.setattr(mps, "USUAL_SOCKET", tmp_path / "no-socket")
    (tmp_path / "bin").mkdir()
    return tmp_path / "bin"


def daemon(bin: Path, script: str) -> Path:
    path = bin / mps.DAEMON
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_replicas_that_share_a_gpu_get_a_daemon(bin: Path, tmp_path: Path) -> None:
    program = daemon(bin, "sleep 60")
    command = mps.with_mps(COMMAND, [ON_THE_CPU, SHARED], {"PATH": str(bin)}, tmp_path)
    assert command[-4:] == [str(tmp_path / "mps"), str(program), *COMMAND]


@pytest.mark.parametrize("config", [ALONE, ON_THE_CPU], ids=["one a GPU", "on the CPU"])
def test_replicas_that_do_not_share_a_gpu_get_no_daemon(bin: Path, tmp_path: Path, config: object) -> None:
    daemon(bin, "sleep 60")
    assert mps.with_mps(COMMAND, [config], {"PATH": str(bin)}, tmp_path) == COMMAND


def test_without_the_program_nothing_changes(bin: Path, tmp_path: Path) -> None:
    assert mps.with_mps(COMMAND, [SHARED], {"PATH": str(bin)}, tmp_path) == COMMAND


def test_a_daemon_that_the_user_chose_stays(bin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon(bin, "sleep 60")
    for value in ("/run/mps", ""):
        environment = {"PATH": str(bin), mps.MPS_PIPES: value}
        assert mps.with_mps(COMMAND, [SHARED], environment, tmp_path) == COMMAND
    mps.USUAL_SOCKET.touch()
    assert mps.with_mps(COMMAND, [SHARED], {"PATH": str(bin)}, tmp_path) == COMMAND


SHOW = 'import os; print(os.environ.get("CUDA_MPS_PIPE_DIRECTORY"))'


@pytest.mark.parametrize(
    "script", ["exit 1", 'touch "$CUDA_MPS_PIPE_DIRECTORY/control"; exec sleep 60'], ids=["ends", "does not serve"]
)
def test_a_daemon_that_does_not_work_is_reported_and_not_used(
    bin: Path, tmp_path: Path, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second daemon listens, but it only sleeps, so CUDA does not run with it."""
    program = daemon(bin, f'echo $$ > "{tmp_path}/pid"; {script}')
    done = subprocess.run(
        [sys.executable, "-I", mps_shim.__file__, str(tmp_path / "mps"), str(program), sys.executable, "-c", SHOW],
        capture_output=True,
        text=True,
        timeout=60,
        env={name: value for name, value in os.environ.items() if name != mps.MPS_PIPES},
    )
    assert done.stdout == "None\n"
    assert done.stderr == "tritonembed: MPS does not start: replicas that share a GPU take turns on it\n"
    assert is_worth_showing(done.stderr.strip())
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()


def test_the_program_gets_the_folder_of_a_working_daemon_which_ends_with_it(bin: Path, tmp_path: Path) -> None:
    """The probe of CUDA is empty here. tests/gpu runs the real probe."""
    script = f'echo $$ > "{tmp_path}/pid"; touch "$CUDA_MPS_PIPE_DIRECTORY/control"; exec sleep 60'
    program = daemon(bin, script)
    (tmp_path / "mps").mkdir()
    (tmp_path / "mps" / "left by one that was killed").touch()
    code = f"import sys; sys.path.insert(0, {str(Path(mps_shim.__file__).parent)!r}); import mps_shim; "
    code += "mps_shim.PROBE = ''; mps_shim.main()"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "mps"), str(program), sys.executable, "-c", SHOW],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.strip() == str(tmp_path / "mps")
    until = time.monotonic() + 60
    while Path("/proc", (tmp_path / "pid").read_text().strip()).exists() and time.monotonic() < until:
        time.sleep(0.01)
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()
