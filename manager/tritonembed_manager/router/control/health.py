"""Health checks: a watch requests vectors from its server regularly, and at once if a worker suspects the server.

A late answer is no failure if the server is busy: if the engine's counters in its metrics grow, or if it answers
requests. By default, `replica` serves metrics only to its own machine. So another watch warns if the metrics of
attached servers can't be read.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from tritonembed_manager.router.control.registry import RegisteredServer, UpstreamRegistry
from tritonembed_manager.router.interfaces import ServerState
from tritonembed_manager.server.probe import Probe, ProbeError, Vectors

_COUNTED = re.compile(rb"^tritonembed_(?:tokens|batches)_total(?:\{[^}]*\})? ([0-9.eE+]+)\s*$", re.MULTILINE)
"""Counters of forward passes. Counters of tokenizing would be wrong, because they also grow with each check."""
_MAX_BYTES = 16 * 1024 * 1024
_ANSWER_S = 2.0
_LOOK_AGAIN_S = 0.5
"""Seconds between two updates of the engine's counters."""
LOOKS = 4

Read = Callable[[str], Awaitable[float | None]]


class ServerProgress(Protocol):
    """Measures whether a server that answers a check late is computing."""

    async def mark(self) -> None:
        """Remember the present progress."""

    async def grew(self) -> bool:
        """Whether the server has computed anything since the last mark. Waits for up to two seconds."""


class MetricsProgress:
    """Progress by a server's metrics. address: their host:port; if None, `grew` is always false."""

    def __init__(
        self,
        address: str | None,
        *,
        read: "Read | None" = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._address = address
        self._read = read or read_counters
        self._sleep = sleep
        self._marked: float | None = None

    async def mark(self) -> None:
        """Remember the present counters."""
        self._marked = await self._counted()

    async def grew(self) -> bool:
        """Whether the counters have grown since the last mark. Waits for up to two seconds."""
        if self._address is None:
            return False
        before = self._marked if self._marked is not None else await self._counted()
        for look in range(LOOKS):
            if look:
                await self._sleep(_LOOK_AGAIN_S)
            now = await self._counted()
            if now is None:
                return False
            if before is not None and now != before:
                self._marked = now
                return True
            before = now
        return False

    async def _counted(self) -> float | None:
        return None if self._address is None else await self._read(self._address)


async def read_counters(address: str) -> float | None:
    """The sum of a server's counters of forward passes; None if they can't be read within two seconds."""
    try:
        text = await asyncio.wait_for(_get(address), _ANSWER_S)
    except (OSError, asyncio.TimeoutError, asyncio.IncompleteReadError, ValueError):
        return None
    found = [float(value) for value in _COUNTED.findall(text)]
    return sum(found) if found else None


async def _get(address: str) -> bytes:
    """The HTTP response, headers included. aiohttp is not used, because it would double the parent's memory."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    try:
        writer.write(f"GET /metrics HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        read = bytearray()
        while len(read) < _MAX_BYTES and (chunk := await reader.read(65536)):
            read += chunk
        return bytes(read)
    finally:
        writer.close()


_SCRAPES_EVERY_S = 15.0
_MOST_NAMED = 4


class ScrapeWatch:
    """Checks regularly whether the metrics of ready attached servers can be read. Run `run` as a task."""

    def __init__(
        self, registry: UpstreamRegistry, read: Callable[[str], Awaitable[float | None]] = read_counters
    ) -> None:
        self._registry = registry
        self._read = read
        self._missing: list[str] = []

    async def run(self) -> None:
        """Check until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(_SCRAPES_EVERY_S)

    async def look(self) -> None:
        """Read the metrics of every ready attached server once."""
        upstreams = [
            upstream
            for upstream in self._registry.upstreams.values()
            if not upstream.launched and upstream.state is ServerState.READY
        ]
        read = await asyncio.gather(*(self._reads(upstream.metrics_address) for upstream in upstreams))
        # A server with several models is named only once.
        looked = zip(reversed(upstreams), reversed(read), strict=True)
        missing = {upstream.address: upstream.id for upstream, found in looked if not found}
        self._missing = list(reversed(missing.values()))

    async def _reads(self, address: str | None) -> bool:
        return address is not None and await self._read(address) is not None

    def warnings(self) -> list[str]:
        """Warnings for the status: one line, or none."""
        if not self._missing:
            return []
        more = len(self._missing) - _MOST_NAMED
        names = ", ".join(self._missing[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
        return [
            f"no metrics of {names}: give host:port/http_port/metrics_port, and start a replica on another host with "
            "--metrics-host; without metrics, a busy server is taken for a hung server"
        ]


WHILE_STARTING_S = 0.2
WHILE_OUT_S = 1.0
LATE_S = 1.0
"""Seconds. If an answer takes longer (or longer than a quarter of the timeout), the server's progress is measured."""
FAILURES_OF_A_HUNG_SERVER = 3
"""After this many failed checks in a row, a launched server is restarted."""
REFUSALS_OF_A_USELESS_SERVER = 10
"""A loaded model that refuses valid sentences this often in a row will not get better."""

Wait = Callable[[asyncio.Event, float], Awaitable[None]]


@dataclass(frozen=True)
class HealthSettings:
    """interval: seconds between checks of a healthy server. timeout: seconds for the answer to a check."""

    interval: float
    timeout: float


async def event_or_time(event: asyncio.Event, seconds: float | None) -> None:
    """Wait for the event, at most for `seconds`."""
    # Before Python 3.12, wait_for loses a cancellation that arrives together with the event.
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait([waiting], timeout=seconds)
    finally:
        waiting.cancel()


class HealthWatch:
    """The checks of one server.

    alive: whether the server answered requests since the last call; if so, a late check means that it is busy.
    progress: another sign that it is busy, which also prevents a restart of a launched server.
    broken: called with the reason if a launched server does not recover.
    cleared: called with the server's id if a check finds a suspected server well.
    """

    def __init__(
        self,
        registry: UpstreamRegistry,
        upstream: RegisteredServer,
        probe: Probe,
        settings: HealthSettings,
        *,
        alive: Callable[[], bool] = lambda: False,
        progress: ServerProgress | None = None,
        broken: Callable[[str], None] | None = None,
        cleared: Callable[[str], None] = lambda _: None,
        wait: Wait = event_or_time,
    ) -> None:
        self._registry = registry
        self._upstream = upstream
        self._probe = probe
        self._settings = settings
        self._alive = alive
        self._progress = progress
        self._broken = broken
        self._cleared = cleared
        self._wait = wait
        self._wanted = asyncio.Event()
        self._doubted = False
        self._seen = upstream.state
        self._refusals = 0
        """Refused checks in a row."""

    def upstream_changed(self) -> None:
        """Call it when the server's state may have changed. A server that has just gone down is checked at once."""
        state = self._upstream.state
        if state is not self._seen and state is not ServerState.READY:
            self._wanted.set()
        self._seen = state

    def check_now(self) -> None:
        """Check at once, because a worker suspects the server."""
        self._doubted = True
        self._wanted.set()

    async def run(self) -> None:
        """Check until cancelled."""
        try:
            while True:
                self._wanted.clear()
                await self.check()
                await self._wait(self._wanted, self._pause())
        finally:
            await self._probe.close()

    async def check(self) -> None:
        """Check once and report the result to the registry."""
        upstream, generation = self._upstream, self._upstream.generation
        if upstream.state in (ServerState.FAILED, ServerState.UNLOADED):
            return
        self._alive()
        doubted, self._doubted = self._doubted, False
        try:
            vectors, space, quality = await self._vectors(), upstream.space, upstream.quality
            if doubted or upstream.state is not ServerState.READY:
                # Another server may be at the address by now.
                space = await self._probe.space(self._settings.timeout)
                quality = await self._probe.quality(space, self._settings.timeout)
        except ProbeError as error:
            if await self._only_busy(error):
                upstream.failures = 0
            elif upstream.generation == generation:
                self._registry.failed(upstream, error)
                self._give_up_if_useless(error)
            return
        if upstream.generation != generation:
            return
        if not upstream.launched and upstream.state is not ServerState.READY:
            described = await self._probe.described(self._settings.timeout)
            upstream.replicas, upstream.max_length = described.replicas, described.max_length
            upstream.adapters = described.adapters
        self._refusals = 0
        self._registry.answered(upstream, vectors, space, quality)
        if doubted and upstream.state is ServerState.READY:
            self._cleared(upstream.id)

    async def _vectors(self) -> Vectors:
        timeout = self._settings.timeout
        asking = asyncio.ensure_future(self._probe.vectors(timeout))
        try:
            if self._progress is not None:
                await asyncio.wait([asking], timeout=min(LATE_S, timeout / 4))
                if not asking.done():
                    await self._progress.mark()
            return await asking
        finally:
            asking.cancel()

    async def _only_busy(self, error: ProbeError) -> bool:
        state = self._upstream.state
        if state is ServerState.READY and (error.busy or (error.timed_out and self._alive())):
            return True
        if self._progress is None or not error.timed_out or state not in (ServerState.READY, ServerState.UNHEALTHY):
            return False
        return await self._progress.grew()

    def _give_up_if_useless(self, error: ProbeError) -> None:
        upstream = self._upstream
        self._refusals = self._refusals + 1 if error.answered else 0
        if self._broken is None or error.busy:
            return
        if upstream.state is ServerState.STARTING:
            if self._refusals >= REFUSALS_OF_A_USELESS_SERVER:
                self._refusals = 0
                self._broken(f"the server started, but an inference fails: {error}")
        elif upstream.failures >= FAILURES_OF_A_HUNG_SERVER:
            self._broken(f"{upstream.failures} checks in a row failed: {error}")

    def _pause(self) -> float:
        state = self._upstream.state
        if state is ServerState.READY:
            return self._settings.interval
        return WHILE_STARTING_S if state is ServerState.STARTING else min(WHILE_OUT_S, self._settings.interval)
