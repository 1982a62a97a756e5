"""Real servers for a benchmark, a test or the demo: `tritonembed-manager` as a child process on free loopback ports."""

import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil  # type: ignore[import-untyped]

from tritonembed_engine.stub.child_python import module_command
from tritonembed_manager.tune.loadgen.load import LoadError
from tritonembed_perf.failures import exit_on_sigterm

_GIVEN_AWAY = Path("/proc/sys/net/ipv4/ip_local_port_range")
_TRIES = 1000
_CHANCE = random.SystemRandom()
"""Random numbers without a seed, because another program may have the same seed."""


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on now, outside the range from which the kernel serves requests for any port.

    Within that range another program could be given the port before the server listens.
    """
    ports: list[int] = []
    with ExitStack() as held:
        for port in _CHANCE.sample(_candidates(), _TRIES):
            with suppress(OSError):
                held.enter_context(socket.create_server(("127.0.0.1", port)))
                ports.append(port)
            if len(ports) == count:
                return ports
    raise OSError(f"of {_TRIES} ports fewer than {count} are free")


def _candidates() -> range:
    """Ports below the kernel's range; all ports if that range covers nearly all."""
    try:
        first = int(_GIVEN_AWAY.read_text().split()[0])
    except OSError:
        first = 0
    return range(10_000, first if first >= 12_000 else 60_000)


READY = "READY grpc "
"""`replica` and `serve` print it once an inference has succeeded."""

LOOK_EVERY_S = 0.2
OWN_LINE = "tritonembed-manager:"


class ServerEndedError(LoadError):
    """The server ended before it was ready. `exit_code`: its own; the message is the manager's last line."""

    def __init__(self, exit_code: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class ManagerProcess:
    """The manager; the servers that it starts are its children."""

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
        lines = [line for line in self.read_log().splitlines() if OWN_LINE in line]
        raise ServerEndedError(self.process.poll() or 1, lines[-1] if lines else "the server did not become ready")


@dataclass(frozen=True)
class RunningServer:
    """A server that was started, and its ports. metrics_port: for a manager, its HTTP port."""

    grpc_port: int
    http_port: int
    metrics_port: int
    manager: ManagerProcess

    @property
    def target(self) -> str:
        """The address for gRPC clients."""
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def url(self) -> str:
        """The address for HTTP clients."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def process(self) -> "subprocess.Popen[str]":
        """The manager's; all else descends from it."""
        return self.manager.process

    def read_log(self) -> str:
        """All that the manager and its servers wrote so far."""
        return self.manager.read_log()


@contextmanager
def manager_process(arguments: Sequence[str], python: str = sys.executable) -> Iterator[ManagerProcess]:
    """Run `tritonembed-manager` until the end of the block, whatever ends that: an error, Ctrl-C or SIGTERM too.

    python: the interpreter, whose packages the python stubs of its servers import, too.
    """
    command = module_command("tritonembed_manager", *arguments, python=python)
    with exit_on_sigterm(), tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, text=True)
        try:
            yield ManagerProcess(process, log)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait()


@contextmanager
def running_server(
    model: str | None, arguments: Sequence[str] = (), timeout: float = 600, python: str = sys.executable
) -> Iterator[RunningServer]:
    """Start a Triton server, wait until it is ready, and stop it at the end.

    model: None if the arguments name a --model-repository. arguments: more options of `tritonembed-manager replica`.
    python: as for `manager_process`. Raises ServerEndedError if it does not become ready.
    """
    grpc_port, http_port, metrics_port = free_ports(3)
    command = ["replica", "--host", "127.0.0.1"]
    command += ["--model", model] if model is not None else []
    command += ["--port", str(grpc_port), "--http-port", str(http_port), "--metrics-port", str(metrics_port)]
    with manager_process([*command, *arguments], python) as manager:
        manager.wait_until_ready(timeout)
        yield RunningServer(grpc_port, http_port, metrics_port, manager)


@contextmanager
def running_manager(model: str, arguments: Sequence[str] = (), timeout: float = 1800) -> Iterator[RunningServer]:
    """Start an endpoint with the servers it launches, wait until it is ready, and stop all of it at the end.

    arguments: more options of `tritonembed-manager serve`. Raises ServerEndedError if it does not become ready.
    """
    grpc_port, http_port, start_port = free_ports(3)
    command = ["serve", "--model", model, "--host", "127.0.0.1"]
    command += ["--port", str(grpc_port), "--http-port", str(http_port)]
    # With servers of others it launches none.
    command += [] if "--server" in arguments else ["--start-port", str(start_port)]
    with manager_process([*command, *arguments]) as manager:
        manager.wait_until_ready(timeout)
        yield RunningServer(grpc_port, http_port, http_port, manager)


def server_memory_mib(pid: int) -> float:
    """PSS of the process and its descendants, and Triton's regions in /dev/shm that are theirs, in MiB.

    PSS (proportional set size) counts a page that n processes share as 1/n in each, so the sum counts it once. Pages of
    /dev/shm that are mapped are in it already; what is not mapped is not memory in use.
    """
    total = 0
    for process in (root := psutil.Process(pid), *root.children(recursive=True)):
        rollup = Path(f"/proc/{process.pid}/smaps_rollup")
        try:
            pss = next(line for line in rollup.read_text().splitlines() if line.startswith("Pss:"))
        except (FileNotFoundError, ProcessLookupError, StopIteration):
            continue
        total += int(pss.split()[1])
    return total / 1024
