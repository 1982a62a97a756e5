"""A process that imports once and forks for every job, because the imports take longer than most cases.

    python -m tritonembed_perf.families.zygote reference

It reads one job per line from standard input, as a JSON object, and writes one line per answer. The module that the
command line names has `prepare()`, which imports, and `run(job)`, which runs in a fork.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from tritonembed_engine.stub.child_python import module_command

Answer = dict[str, Any]
POLL_SECONDS = 0.02


class Zygote:
    """The parent's handle of the process. For one thread at a time."""

    def __init__(self, module: str) -> None:
        """module: "reference" or "serving"."""
        command = module_command(__name__, module)
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)

    def ask(self, job: dict[str, Any], log: Path, seconds: float) -> Answer:
        """Run a job in a fork. log: the file for what it prints.

        Returns the dict of `run`, or {"crashed": why}. Raises RuntimeError if the process itself has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps({"job": job, "log": str(log), "seconds": seconds}), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"a process that runs the cases ended with {self._process.wait()}")
        answer: Answer = json.loads(line)
        return answer

    def __enter__(self) -> "Zygote":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()


def main() -> None:
    """Serve jobs until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    # Output of the imported libraries must not mix with the answers.
    os.dup2(2, 1)
    module = import_module(f"{__package__}.{sys.argv[1]}")
    module.prepare()
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(_fork(module.run, asked["job"], asked["log"], asked["seconds"])), file=answers, flush=True)


def _fork(run: Callable[[Any], Answer], job: Any, log: str, seconds: float) -> Answer:
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        _run_and_exit(run, job, log, os.fdopen(write, "w"))
    os.close(write)
    deadline = time.monotonic() + seconds
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(read)
            return {"crashed": f"no answer in {seconds:.0f} s"}
        time.sleep(POLL_SECONDS)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    if text:
        answer: Answer = json.loads(text)
        return answer
    return {"crashed": f"ended with {os.waitstatus_to_exitcode(ended[1])}"}


def _run_and_exit(run: Callable[[Any], Answer], job: Any, log: str, answer: TextIO) -> None:
    """Run the job in the child. It never returns, and it skips the interpreter's shutdown, which takes seconds."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    try:
        json.dump(run(job), answer)
        answer.flush()
        code = 0
    except BaseException as error:
        import traceback

        traceback.print_exc()
        json.dump({"crashed": f"{type(error).__name__}: {error}"[:300]}, answer)
        answer.flush()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
