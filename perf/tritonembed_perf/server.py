"""A real Triton server for a benchmark, a test or the demo: `tritonembed-manager replica` on free loopback ports."""

import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO


class ServerEndedError(Exception):
    """The server ended before it was ready; `code` is its exit code, the message what the manager said."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class RunningServer:
    """Where it listens. process: the manager's; Triton is its child."""

    grpc_port: int
    http_port: int
    metrics_port: int
    process: "subprocess.Popen[str]"
    log: IO[str]

    @property
    def target(self) -> str:
        """For gRPC clients."""
        return f"127.0.0.1:{self.grpc_port}"

    def read_log(self) -> str:
        """All that manager and server wrote so far."""
        self.log.seek(0)
        return self.log.read()


@contextmanager
def running_server(model: str | None, arguments: Sequence[str] = (), timeout: float = 600) -> Iterator[RunningServer]:
    """Start a server, wait for READY (an inference succeeded), stop it at the end whatever happens.

    model: None where the arguments name a --model-repository. arguments: more options of `tritonembed-manager replica`.
    Raises ServerEndedError where it does not come up.
    """
    grpc_port, http_port, metrics_port = free_ports(3)
    command = [sys.executable, "-m", "tritonembed_manager", "replica", "--host", "127.0.0.1"]
    command += ["--model", model] if model is not None else []
    command += ["--port", str(grpc_port), "--http-port", str(http_port), "--metrics-port", str(metrics_port)]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen([*command, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log, text=True)
        server = RunningServer(grpc_port, http_port, metrics_port, process, log)
        try:
            _wait_until_ready(server, timeout)
            yield server
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait()


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on at this moment."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [taken.getsockname()[1] for taken in sockets]
    for taken in sockets:
        taken.close()
    return ports


def _wait_until_ready(server: RunningServer, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while server.process.poll() is None and time.monotonic() < deadline:
        if any(line.startswith("READY") for line in server.read_log().splitlines()):
            return
        time.sleep(0.2)
    said = [line for line in server.read_log().splitlines() if line.startswith("tritonembed-manager:")]
    raise ServerEndedError(server.process.poll() or 1, said[-1] if said else "the server did not become ready")
