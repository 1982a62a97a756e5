"""A Python that has imported vLLM. It runs modules in forks, which saves each the ten seconds of that import.

As a program, `python -m tests.integration.preloaded`, it reads one line of JSON per module and writes the exit code.
"""

import contextlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Preloaded:
    """`run` works like `subprocess.run` for `python -m MODULE ARGUMENT…`, for one module at a time."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def run(self, module: str, *arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
        """environment: variables in addition to this process's."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder) / "stdout", Path(folder) / "stderr"
            command = [module, *map(str, arguments)]
            asked = {"command": command, "environment": environment, "stdout": str(out), "stderr": str(err)}
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
            code = int(self._process.stdout.readline())
            return subprocess.CompletedProcess(command, code, out.read_text(), err.read_text())


@contextlib.contextmanager
def preloaded_python() -> Iterator[Preloaded]:
    """A process that ends with the `with`."""
    command = [sys.executable, "-m", "tests.integration.preloaded"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        # The process ends when its stdin is closed, as Popen does on leaving.
        yield Preloaded(process)


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    # The output of vLLM's import must not mix with the answers.
    os.dup2(2, 1)
    from tritonembed_engine.stub.process import imports_that_stay, prepare_process

    prepare_process(visible_gpus=None)
    with imports_that_stay():
        from vllm import LLM  # noqa: F401
        from vllm.config import PoolerConfig  # noqa: F401
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            _run(asked)
        _, status = os.waitpid(child, 0)
        answers.write(f"{os.waitstatus_to_exitcode(status)}\n")
        answers.flush()


def _run(asked: dict[str, Any]) -> None:
    """Run the module as `python -m` would, then exit. Never returns."""
    for number, name in ((0, os.devnull), (1, asked["stdout"]), (2, asked["stderr"])):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
    os.environ.update(asked["environment"])
    module, *arguments = asked["command"]
    sys.argv = [module, *arguments]
    code: object = 1
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = 0 if end.code is None else end.code
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    _serve()
