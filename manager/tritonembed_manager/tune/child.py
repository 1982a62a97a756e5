"""A process that `tune` starts: told to end when we die, watched without missing Ctrl-C, and nothing of it left."""

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

from tritonembed_manager import exec_shim
from tritonembed_manager.interrupts import Interrupted
from tritonembed_manager.processes import Process, family, process_table
from tritonembed_manager.signals import SignalPipe

POLL_S = 0.2
_SECOND_SIGNAL_S = 0.5
_PATIENCE_S = 20.0


class Child:
    """A command in a session of its own (Ctrl-C reaches us alone), its output in a file. Use as a context manager.

    Start it from the main thread: it ends with the thread that started it.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        self._read = 0
        self._unfinished = b""
        self._known: list[Process] = []
        shim = [sys.executable, "-I", exec_shim.__file__, str(os.getpid())]
        self._process = subprocess.Popen(
            [*shim, *command],
            env=None if environment is None else dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def __enter__(self) -> "Child":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def members(self) -> list[Process]:
        """It and what it started, as long as they live."""
        self._known = family(self._process.pid, process_table(), self._known)
        return self._known

    def new_lines(self) -> list[str]:
        """The lines completed since the last call."""
        data = os.pread(self._log.fileno(), 1 << 24, self._read)
        self._read += len(data)
        *lines, self._unfinished = (self._unfinished + data).split(b"\n")
        return [line.decode(errors="replace") for line in lines]

    def end(self) -> None:
        """End it and all it started: nothing is in flight that anybody waits for, so without draining."""
        self.members()
        # The second tells a replica that drains to end at once.
        for _ in range(2):
            if self._process.poll() is None:
                self._process.terminate()
                _until(lambda: self._process.poll() is not None, _SECOND_SIGNAL_S)
        if not _until(lambda: self._process.poll() is not None and not self.members(), _PATIENCE_S):
            for process in self.members():
                _kill(process.pid)
        self._process.wait()
        self._log.close()


def wait(signals: SignalPipe, seconds: float = POLL_S) -> None:
    """Let time pass. Raises Interrupted when a stop signal has come."""
    if select.select([signals.fd], [], [], seconds)[0]:
        raise Interrupted(signals.read()[-1])


def _until(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
