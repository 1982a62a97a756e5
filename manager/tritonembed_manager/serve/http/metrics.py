"""/metrics: what the workers counted, how the servers stand, and every server's own metrics, in one scrape."""

import asyncio
import os
from collections.abc import Callable, Iterable

import aiohttp
from aiohttp import web
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector

from tritonembed_manager.serve.http.scrape import Merged
from tritonembed_manager.serve.model import ServerState, ServerView

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_PATIENCE_S = 2.0
"""For a server's metrics: a scrape is not to fail because one server hangs."""
_MAX_BYTES = 16 * 1024 * 1024


class Metrics:
    """servers: as they are now. session: the client that asks them."""

    def __init__(self, servers: Callable[[], list[ServerView]], session: Callable[[], aiohttp.ClientSession]) -> None:
        self._servers = servers
        self._session = session

    def routes(self) -> list[web.RouteDef]:
        """What it answers."""
        return [web.get("/metrics", self.metrics)]

    async def metrics(self, _request: web.Request) -> web.Response:
        """Prometheus' text format; a server's own metrics carry its id as the label `server`."""
        servers = self._servers()
        asked = [server for server in servers if server.metrics_address and server.state is not ServerState.FAILED]
        ours, theirs = await asyncio.gather(
            asyncio.to_thread(_ours, servers),
            asyncio.gather(*(self._fetch(server.metrics_address or "") for server in asked)),
        )
        merged = Merged()
        merged.add(ours)
        for server, text in zip(asked, theirs, strict=True):
            merged.add(text or "", server.id)
        answered = {server.id: text is not None for server, text in zip(asked, theirs, strict=True)}
        merged.add(generate_latest(_registry(_Answered(answered))).decode())
        return web.Response(body=merged.text().encode(), headers={"Content-Type": CONTENT_TYPE})

    async def _fetch(self, address: str) -> str | None:
        """The text of a server's metrics; None when there is none in time, or no end of it."""
        try:
            async with self._session().get(
                f"http://{address}/metrics", timeout=aiohttp.ClientTimeout(total=_PATIENCE_S)
            ) as answer:
                if answer.status != 200:
                    return None
                return await _text(answer)
        except (aiohttp.ClientError, asyncio.TimeoutError, ValueError):
            return None


async def _text(answer: aiohttp.ClientResponse) -> str | None:
    found = bytearray()
    async for chunk in answer.content.iter_any():
        found += chunk
        if len(found) > _MAX_BYTES:
            return None
    return found.decode(errors="replace")


class _Standing:
    """What the parent says of the servers."""

    def __init__(self, servers: list[ServerView]) -> None:
        self._servers = servers

    def collect(self) -> Iterable[Metric]:
        state = GaugeMetricFamily(
            "tritonembed_server_state", "1 for the state a server is in.", labels=["server", "state"]
        )
        restarts = CounterMetricFamily(
            "tritonembed_server_restarts", "Times the manager started a server again.", labels=["server"]
        )
        replicas = GaugeMetricFamily(
            "tritonembed_server_replicas", "Replicas of the model in a server.", labels=["server"]
        )
        for server in self._servers:
            for known in ServerState:
                state.add_metric([server.id, known.value], float(server.state is known))
            restarts.add_metric([server.id], server.restarts)
            replicas.add_metric([server.id], server.replicas)
        return state, restarts, replicas


class _Answered:
    def __init__(self, answered: dict[str, bool]) -> None:
        self._answered = answered

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily(
            "tritonembed_server_scraped", "1 when a server gave its own metrics to this scrape.", labels=["server"]
        )
        for server, answered in self._answered.items():
            family.add_metric([server], float(answered))
        return (family,)


def _ours(servers: list[ServerView]) -> str:
    if os.environ.get(_FOLDER):
        counted = CollectorRegistry()
        MultiProcessCollector(counted)  # type: ignore[no-untyped-call]
    else:
        counted = REGISTRY
    return (generate_latest(counted) + generate_latest(_registry(_Standing(servers)))).decode()


def _registry(collector: _Standing | _Answered) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(collector)
    return registry
