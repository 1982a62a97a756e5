"""The servers as endpoints with IP addresses: names are looked up again and again, since xDS wants numbers."""

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Sequence

from tritonembed_manager.router.control.envoy.clusters import Endpoint
from tritonembed_manager.router.interfaces import ServerState, ServerView
from tritonembed_manager.router.log import warn
from tritonembed_protocol.tls import GRPCS

_RESOLVE_EVERY_S = 5.0


class EndpointList:
    """who: can't use servers with grpcs://, in a warning. changed: called with the servers whenever they change."""

    def __init__(self, who: str, changed: Callable[[Sequence[tuple[ServerView, Endpoint]]], None]) -> None:
        self._who = who
        self._report = changed
        self._views: Sequence[ServerView] = ()
        self._draining = False
        self._changed = asyncio.Event()
        self._unreachable: set[str] = set()

    def update(self, views: Sequence[ServerView]) -> None:
        """Other servers, or other states."""
        self._views = views
        self._changed.set()

    def drain(self) -> None:
        """READY servers are DRAINING from now on."""
        self._draining = True
        self._changed.set()

    async def run(self) -> None:
        """Keep the list until cancelled."""
        while True:
            self._changed.clear()
            self._report(await self._endpoints())
            with_names = any(_ip(_host_port(view.address)[0]) is None for view in self._reachable())
            try:
                await asyncio.wait_for(self._changed.wait(), _RESOLVE_EVERY_S if with_names else None)
            except asyncio.TimeoutError:
                continue

    async def _endpoints(self) -> list[tuple[ServerView, Endpoint]]:
        found: dict[tuple[str, str], tuple[ServerView, Endpoint]] = {}
        for view in self._reachable():
            host, port = _host_port(view.address)
            address = _ip(host) or await _resolve(host, port)
            if address is None:
                continue
            draining = self._draining and view.state is ServerState.READY
            endpoint = Endpoint(address, port, ServerState.DRAINING if draining else view.state)
            found.setdefault((view.ensemble, endpoint.address), (view, endpoint))
        return list(found.values())

    def _reachable(self) -> list[ServerView]:
        encrypted = {view.id for view in self._views if view.address.startswith(GRPCS)}
        for id in encrypted - self._unreachable:
            warn(
                "envoy_without_server", f"{self._who}: no way to servers with grpcs://: only workers use it", server=id
            )
        self._unreachable = encrypted
        return [view for view in self._views if view.id not in encrypted]


def _host_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _ip(host: str) -> str | None:
    """The address if it is a number, in the form in which Envoy shows it."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return None


async def _resolve(host: str, port: int) -> str | None:
    """An address of a name, by preference of IPv4; None if there is none now."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return None
    return str(min(found, key=lambda one: one[0] != socket.AF_INET)[4][0]) if found else None
