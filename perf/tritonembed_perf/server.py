"""A real Triton server for a benchmark, a test or the demo: `tritonembed-manager replica` on free loopback ports."""

import random
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tritonembed_perf.manager_process import ManagerProcess, manager_process

_GIVEN_AWAY = Path("/proc/sys/net/ipv4/ip_local_port_range")
_TRIES = 1000
_CHANCE = random.SystemRandom()
"""No seed that another program may have, too."""


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
    """Ports that nothing listens on at this moment, where the kernel does not put whoever asks for any port.

    A server listens seconds later, once its models are loaded: any other program could have been given them by then.
    """
    ports: list[int] = []
    with ExitStack() as held:
        for port in _CHANCE.sample(_own_ports(), _TRIES):
            with suppress(OSError):
                held.enter_context(socket.create_server(("127.0.0.1", port)))
                ports.append(port)
            if len(ports) == count:
                return ports
    raise OSError(f"of {_TRIES} ports fewer than {count} are free")


def _own_ports() -> range:
    """Below those that Linux gives away; all of them where it gives away nearly all."""
    try:
        first = int(_GIVEN_AWAY.read_text().split()[0])
    except OSError:
        first = 0
    return range(10_000, first if first >= 12_000 else 60_000)
