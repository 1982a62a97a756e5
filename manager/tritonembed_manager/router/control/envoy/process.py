"""Envoy's process: its start, its log and its end; and its administration, which reports whether it serves."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from tritonembed_manager.router.control.envoy.clusters import SERVERS
from tritonembed_manager.router.control.workers import process_ended
from tritonembed_manager.server import exec_shim

_ENDS_S = 2.0
_FLUSH_EVERY_MS = 100
"""Seconds between two flushes of access logs."""


class EnvoyProcess:
    """A running Envoy. To be started from the main thread, because Envoy ends with the thread that started it.

    line: called with each line that Envoy writes. inherited: descriptors for Envoy.
    """

    def __init__(
        self,
        binary: Path,
        bootstrap: Path,
        threads: int,
        line: Callable[[str], None],
        inherited: Sequence[int] = (),
    ) -> None:
        self._line = line
        options = ["-c", str(bootstrap), "--concurrency", str(threads), "--disable-hot-restart"]
        options += ["--file-flush-interval-msec", str(_FLUSH_EVERY_MS)]
        # A separate session: Ctrl-C reaches only the manager, which then drains.
        self._child = subprocess.Popen(
            [
                *(sys.executable, "-I", exec_shim.__file__, str(os.getpid())),
                *(str(binary), *options, "--log-level", "warning", "--log-format", "%v"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            pass_fds=tuple(inherited),
        )
        self.pid = self._child.pid

    async def ended(self) -> int:
        """Read its output until it has ended. Returns its exit status."""
        reading = asyncio.ensure_future(self._read())
        try:
            status = await process_ended(self._child)
            await asyncio.wait([reading], timeout=_ENDS_S)
            return status
        finally:
            reading.cancel()

    def terminate(self) -> None:
        """Ask it to write its access log and end. It does not wait for requests."""
        if self._child.poll() is None:
            self._child.terminate()

    def kill(self) -> None:
        """End it at once."""
        if self._child.poll() is None:
            self._child.kill()
            self._child.wait()

    async def _read(self) -> None:
        assert self._child.stderr is not None
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), self._child.stderr
        )
        try:
            while True:
                try:
                    line = await reader.readline()
                except ValueError:  # longer than the buffer
                    continue
                if not line:
                    return
                self._line(line.decode(errors="replace").rstrip())
        finally:
            transport.close()


_PATIENCE_S = 2.0
_LISTENERS = "listener_manager.total_listeners_active"
_FAILED_LISTENERS = "listener_manager.listener_create_failure"


class AdminError(Exception):
    """Envoy does not answer."""


@dataclass(frozen=True)
class HostFigures:
    """A server as Envoy sees it. requests, errors: since it was listed. takes_new: whether it gets new requests."""

    in_flight: int
    requests: int
    errors: int
    takes_new: bool


@dataclass(frozen=True)
class Listening:
    """live: whether Envoy has read its configuration. ports: on which it listens. failed: on which it can't listen."""

    live: bool
    ports: int
    failed: int


class EnvoyAdmin:
    """A client of the interface. Raises AdminError if Envoy does not answer in time."""

    def __init__(self, socket: Path) -> None:
        self._socket = str(socket)
        self._session: aiohttp.ClientSession | None = None

    async def listening(self) -> Listening:
        """Where Envoy listens."""
        status, _ = await self._get("/ready")
        _, body = await self._get(f"/stats?format=json&filter=^({_LISTENERS}|{_FAILED_LISTENERS})$")
        found = {stat["name"]: int(stat["value"]) for stat in json.loads(body)["stats"] if "name" in stat}
        return Listening(status == 200, found.get(_LISTENERS, 0), found.get(_FAILED_LISTENERS, 0))

    async def servers(self) -> dict[str, HostFigures]:
        """The figures of the servers, by address."""
        _, body = await self._get("/clusters?format=json")
        clusters = json.loads(body).get("cluster_statuses", ())
        hosts = next((cluster.get("host_statuses", ()) for cluster in clusters if cluster["name"] == SERVERS), ())
        return dict(_host(host) for host in hosts)

    async def close(self) -> None:
        """Close the connection."""
        if self._session is not None:
            await self._session.close()

    async def _get(self, path: str) -> tuple[int, str]:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=_PATIENCE_S)
            self._session = aiohttp.ClientSession(
                "http://envoy", connector=aiohttp.UnixConnector(self._socket), timeout=timeout, trust_env=False
            )
        try:
            async with self._session.get(path) as answer:
                return answer.status, await answer.text()
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            raise AdminError(type(error).__name__) from None


def _host(host: dict[str, Any]) -> tuple[str, HostFigures]:
    at = host["address"]["socket_address"]
    address = f"[{at['address']}]:{at['port_value']}" if ":" in at["address"] else f"{at['address']}:{at['port_value']}"
    stats = {stat["name"]: int(stat.get("value", 0)) for stat in host.get("stats", ())}
    # Envoy leaves out fields with their default value.
    health = host.get("health_status", {}).get("eds_health_status", "HEALTHY")
    return address, HostFigures(
        in_flight=stats.get("rq_active", 0),
        requests=stats.get("rq_total", 0),
        errors=stats.get("rq_error", 0),
        takes_new=health == "HEALTHY",
    )
