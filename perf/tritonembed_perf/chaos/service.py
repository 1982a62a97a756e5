"""The service under attack: `tritonembed-manager serve` with real servers, its processes by role, and its status."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tritonembed_manager.server.process import Process, family, process_table
from tritonembed_perf.server import ManagerProcess, free_ports, manager_process

MANAGER, WORKER, TRITON, EMBEDDER, TOKENIZER = "manager", "worker", "tritonserver", "embedder stub", "tokenizer stub"
CONVERTER = "converter"
"""A worker's process that reads large bodies. It starts when the first large body arrives."""
SERVERS, WORKERS = 2, 2
_WORKER_MODULE = "tritonembed_manager.router.worker"
_CONVERTER_MODULE = "http.converter"
_ID = re.compile(r"\bserver-\d+\b")
_STATUS_S = 3.0
_OPTIONS = (
    "--device=cpu",
    f"--servers={SERVERS}",
    f"--num-replicas={SERVERS}",
    "--tokenizer-instances=1",
    f"--workers={WORKERS}",
    "--load-balancing=least_loaded",
    "--health-interval=0.5",
    "--health-timeout=5",
    # The campaign's kills must not add up to a server that stays down.
    "--max-restarts=100000",
    "--restart-window=10",
)


@dataclass(frozen=True)
class Member:
    """A living process of the service. server: the id of the server that it belongs to; empty if there is none."""

    process: Process
    role: str
    server: str


@dataclass
class Service:
    """The running service: its ports and its processes."""

    grpc_port: int
    http_port: int
    manager: ManagerProcess
    _known: list[Process] = field(default_factory=list)

    @property
    def pid(self) -> int:
        """The manager's pid."""
        return self.manager.process.pid

    @property
    def target(self) -> str:
        """host:port of gRPC."""
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def url(self) -> str:
        """Base URL for HTTP."""
        return f"http://127.0.0.1:{self.http_port}"

    def members(self) -> list[Member]:
        """All living processes of the service, including those that have lost their parent since the last call."""
        self._known = family(self.pid, process_table(), self._known)
        leaders = {}
        found = []
        for process in self._known:
            command = _command(process.pid)
            if process.name == TRITON:
                leaders[process.session] = next(iter(_ID.findall(command)), "")
            found.append((process, _role(process, command, self.pid)))
        return [Member(process, role, leaders.get(process.session, "")) for process, role in found if role]

    async def status(self) -> dict[str, Any]:
        """The answer of /status, over a new connection; {} if there is none in time."""
        timeout = aiohttp.ClientTimeout(total=_STATUS_S)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, trust_env=False) as session,
                session.get(f"{self.url}/status") as answer,
            ):
                found: dict[str, Any] = await answer.json()
                return found
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            return {}


@contextmanager
def running_service(model: str, arguments: tuple[str, ...] = (), timeout: float = 240) -> Iterator[Service]:
    """Start the service and wait for READY. It is ended in any case."""
    grpc_port, http_port, start_port = free_ports(3)
    ports = [f"--port={grpc_port}", f"--http-port={http_port}", f"--start-port={start_port}"]
    # On a machine with few cores, the servers must not compete for all of them.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with manager_process(["serve", "--model", model, "--host=127.0.0.1", *ports, *_OPTIONS, *arguments]) as manager:
        manager.wait_until_ready(timeout)
        yield Service(grpc_port, http_port, manager)


def all_ready(status: dict[str, Any]) -> bool:
    """Whether every server and every worker is ready."""
    servers = status.get("servers", ())
    workers = status.get("workers", {})
    return (
        len(servers) == SERVERS
        and all(server["state"] == "ready" for server in servers)
        and workers.get("ready") == workers.get("count")
    )


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _role(process: Process, command: str, manager: int) -> str:
    if process.pid == manager:
        return MANAGER
    if process.name == TRITON:
        return TRITON
    if _WORKER_MODULE in command:
        return WORKER
    if _CONVERTER_MODULE in command:
        return CONVERTER
    if "triton_python_backend_stub" in command:
        return EMBEDDER if "/embedder/" in command else TOKENIZER if "/tokenizer/" in command else "other stub"
    # A shell between a server and its stub, or a process that has just been forked.
    return ""
