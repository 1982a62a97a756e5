"""Python processes that import nothing from the current folder, and turns between processes."""

import contextlib
import fcntl
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tritonembed_engine.errors import ModelError
from tritonembed_engine.stub.process import announce

_RUN_MODULE = "import sys; del sys.path[0]; import runpy; runpy.run_module(sys.argv.pop(1), None, '__main__', True)"

logger = logging.getLogger(__name__)


def module_command(module: str, *arguments: str, python: str = sys.executable) -> list[str]:
    """`python -m MODULE ARGUMENT…`, but without the current folder on the path, where `-m` puts it first."""
    if sys.version_info >= (3, 11):
        return [python, "-P", "-m", module, *arguments]
    return [python, "-c", _RUN_MODULE, module, *arguments]


def stub_python() -> str:
    """The interpreter; in Triton's stub, which is no interpreter itself, the one on PATH, whose packages it uses."""
    if Path(sys.executable or "").name.startswith("python"):
        return sys.executable
    return shutil.which("python3") or "python3"


def run_module(module: str, given: Mapping[str, Any], what: str) -> None:
    """Run a module on the CPU in a process of its own, whose memory and threads end with it.

    given: the module's only argument, as JSON. what: what the module makes, for messages. Raises ModelError with the
    last line that the module printed after `tritonembed: ` (see `report`). If there is no such line, the error has the
    exit code, and the log has the end of the output.
    """
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    # vLLM's settings of this process must not limit the child to one core.
    environment.pop("OMP_NUM_THREADS", None)
    ran = subprocess.run(
        module_command(module, json.dumps(given), python=stub_python()),
        capture_output=True,
        text=True,
        env=environment,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if ran.returncode:
        lines = [line for line in ran.stderr.splitlines() if line.startswith("tritonembed: ")]
        if lines:
            raise ModelError(lines[-1].removeprefix("tritonembed: "))
        logger.error("the process for %s failed:\n%s", what, ran.stderr[-2000:])
        raise ModelError(f"{what} could not be computed (exit code {ran.returncode}); the log has the reason")


@contextlib.contextmanager
def turn(file: Path, waiting: str) -> Iterator[None]:
    """One process at a time: replicas start at the same moment, and the first makes what all need.

    file: to lock. waiting: the step of the start to announce while another process has the turn.
    """
    with file.open("w") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            announce(waiting)
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield
