"""`tritonembed-manager` as a child process for a benchmark, a test or the demo: started, waited for, stopped."""

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from tritonembed_perf.termination import exit_on_sigterm

READY = "READY grpc "
"""`replica` and `serve` print it once an inference has succeeded."""

LOOK_EVERY_S = 0.2
OWN_LINE = "tritonembed-manager:"


class ServerEndedError(Exception):
    """The server ended before it was ready; `code` is its exit code, the message what the manager said."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class ManagerProcess:
    """What it starts are its children."""

    process: "subprocess.Popen[str]"
    log: IO[str]

    def read_log(self) -> str:
        """All that it and its servers wrote so far."""
        self.log.seek(0)
        return self.log.read()

    def wait_until_ready(self, timeout: float) -> None:
        """Wait for READY. Raises ServerEndedError, also after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self.process.poll() is None and time.monotonic() < deadline:
            if READY in self.read_log():
                return
            time.sleep(LOOK_EVERY_S)
        said = [line for line in self.read_log().splitlines() if OWN_LINE in line]
        raise ServerEndedError(self.process.poll() or 1, said[-1] if said else "the server did not become ready")


@contextmanager
def manager_process(arguments: Sequence[str]) -> Iterator[ManagerProcess]:
    """Run it until the end of the block, whatever ends that: an error, Ctrl-C or SIGTERM too."""
    command = [sys.executable, "-m", "tritonembed_manager", *arguments]
    with exit_on_sigterm(), tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, text=True)
        try:
            yield ManagerProcess(process, log)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait()
