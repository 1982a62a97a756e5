"""A real manager before its Triton servers, for a benchmark: `tritonembed-manager serve` on free loopback ports."""

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from tritonembed_perf.server import ServerEndedError, free_ports

READY = "READY grpc "


@dataclass(frozen=True)
class RunningManager:
    """Where it listens. pid: of the process that everything else descends from."""

    grpc_port: int
    http_port: int
    pid: int

    @property
    def target(self) -> str:
        """For gRPC clients."""
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def url(self) -> str:
        """For HTTP clients."""
        return f"http://127.0.0.1:{self.http_port}"


@contextmanager
def running_manager(model: str, arguments: Sequence[str] = (), timeout: float = 1800) -> Iterator[RunningManager]:
    """Start a manager with what it launches, wait for READY, stop all of it at the end whatever happens.

    arguments: more options of `tritonembed-manager serve`. Raises ServerEndedError where it does not come up.
    """
    grpc_port, http_port, start_port = free_ports(3)
    command = [sys.executable, "-m", "tritonembed_manager", "serve", "--model", model, "--host", "127.0.0.1"]
    command += ["--port", str(grpc_port), "--http-port", str(http_port)]
    # It launches no servers where it is given some.
    command += [] if "--server" in arguments else ["--start-port", str(start_port)]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen([*command, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log, text=True)
        try:
            deadline = time.monotonic() + timeout
            while (said := _read(log)).find(READY) < 0:
                if process.poll() is not None or time.monotonic() > deadline:
                    lines = [line for line in said.splitlines() if line]
                    raise ServerEndedError(process.poll() or 1, lines[-1] if lines else "it did not become ready")
                time.sleep(0.2)
            yield RunningManager(grpc_port, http_port, process.pid)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait()


def _read(log: IO[str]) -> str:
    log.seek(0)
    return log.read()
