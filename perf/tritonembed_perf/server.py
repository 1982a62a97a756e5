"""A real Triton server for a benchmark, a test or the demo: `tritonembed-manager replica` on free loopback ports."""

import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tritonembed_perf.manager_process import ManagerProcess, manager_process


@dataclass(frozen=True)
class RunningServer:
    """Where it listens."""

    grpc_port: int
    http_port: int
    metrics_port: int
    manager: ManagerProcess

    @property
    def target(self) -> str:
        """For gRPC clients."""
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def process(self) -> "subprocess.Popen[str]":
        """The manager's; Triton is its child."""
        return self.manager.process

    def read_log(self) -> str:
        """All that manager and server wrote so far."""
        return self.manager.read_log()


@contextmanager
def running_server(model: str | None, arguments: Sequence[str] = (), timeout: float = 600) -> Iterator[RunningServer]:
    """Start a server, wait for READY (an inference succeeded), stop it at the end whatever happens.

    model: None where the arguments name a --model-repository. arguments: more options of `tritonembed-manager replica`.
    Raises ServerEndedError where it does not come up.
    """
    grpc_port, http_port, metrics_port = free_ports(3)
    command = ["replica", "--host", "127.0.0.1"]
    command += ["--model", model] if model is not None else []
    command += ["--port", str(grpc_port), "--http-port", str(http_port), "--metrics-port", str(metrics_port)]
    with manager_process([*command, *arguments]) as manager:
        manager.wait_until_ready(timeout)
        yield RunningServer(grpc_port, http_port, metrics_port, manager)


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on at this moment."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [taken.getsockname()[1] for taken in sockets]
    for taken in sockets:
        taken.close()
    return ports
