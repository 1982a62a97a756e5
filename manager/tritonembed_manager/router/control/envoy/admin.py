"""Envoy's administration interface, on a Unix socket: whether Envoy serves, and its figures per server."""

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from tritonembed_manager.router.control.envoy.clusters import SERVERS

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
    """live: whether Envoy has read its configuration. ports: on which it listens. failed: on which it can't."""

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
    # Envoy leaves out what has its default value.
    health = host.get("health_status", {}).get("eds_health_status", "HEALTHY")
    return address, HostFigures(
        in_flight=stats.get("rq_active", 0),
        requests=stats.get("rq_total", 0),
        errors=stats.get("rq_error", 0),
        takes_new=health == "HEALTHY",
    )
