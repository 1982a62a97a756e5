"""A real manager before its Triton servers, for a benchmark: `tritonembed-manager serve` on free loopback ports."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tritonembed_perf.manager_process import manager_process
from tritonembed_perf.server import free_ports


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
    command = ["serve", "--model", model, "--host", "127.0.0.1"]
    command += ["--port", str(grpc_port), "--http-port", str(http_port)]
    # It launches no servers where it is given some.
    command += [] if "--server" in arguments else ["--start-port", str(start_port)]
    with manager_process([*command, *arguments]) as manager:
        manager.wait_until_ready(timeout)
        yield RunningManager(grpc_port, http_port, manager.process.pid)
