"""/metrics: the workers' counts, the servers' states, and every server's own metrics, in one scrape.

The texts of many servers are merged into one in Prometheus' format: each metric once, followed by all its samples.
"""

import asyncio
import os
import re
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import aiohttp
import yarl
from aiohttp import web
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.utils import floatToGoString

from tritonembed_manager.router.data.metrics import BOUNDS, Exemplar
from tritonembed_manager.router.data.quotas import Quotas, QuotaTable
from tritonembed_manager.router.data.tenants import Tenants
from tritonembed_manager.router.interfaces import ServerState, ServerView

_SAMPLE = re.compile(r"([A-Za-z_:][A-Za-z0-9_:]*)(?:\{(.*)\})?( [^{}]+)")
_SUFFIXES = re.compile(r"_(?:bucket|sum|count|total|created)$")


@dataclass
class _Family:
    comments: list[str] = field(default_factory=list)
    """HELP and TYPE, of the first text that has them."""
    samples: list[str] = field(default_factory=list)


class Merged:
    """Merges texts that are added one by one. Lines that are neither samples nor HELP or TYPE are left out."""

    def __init__(self) -> None:
        self._families: dict[str, _Family] = {}

    def add(self, text: str, server: str | None = None) -> None:
        """server: if given, every sample gets this value as the label `server`."""
        label = None if server is None else f'server="{_escaped(server)}"'
        for line in text.splitlines():
            if line.startswith(("# HELP ", "# TYPE ")):
                self._comment(line)
            elif found := _SAMPLE.fullmatch(line):
                name, labels, value = found.groups()
                known = ",".join(part for part in (label, (labels or "").rstrip(",")) if part)
                self._of(name).samples.append(f"{name}{{{known}}}{value}" if known else f"{name}{value}")

    def text(self) -> str:
        """The merged text."""
        lines = [line for family in self._families.values() for line in (*family.comments, *family.samples)]
        return "".join(f"{line}\n" for line in lines)

    def open_metrics(self, exemplars: Mapping[int, Exemplar]) -> str:
        """The merged text in OpenMetrics' format. exemplars: of the buckets of the latencies."""
        # There, the time of a counter's creation is a sample of the counter, which Prometheus drops.
        families = [(name, family) for name, family in self._families.items() if not name.endswith("_created")]
        lines = [line for name, family in families for line in _open_metrics(name, family, exemplars)]
        return "".join(f"{line}\n" for line in (*lines, "# EOF"))

    def _comment(self, line: str) -> None:
        _, kind, name, *_ = line.split(" ", 3)
        family = self._families.setdefault(name, _Family())
        if not any(comment.startswith(f"# {kind} ") for comment in family.comments):
            family.comments.append(line)

    def _of(self, sample: str) -> _Family:
        """The metric to which a sample belongs: its own, or a histogram or summary."""
        if sample not in self._families:
            whole = _SUFFIXES.sub("", sample)
            if whole in self._families:
                return self._families[whole]
        return self._families.setdefault(sample, _Family())


_LATENCIES = "tritonembed_request_duration_seconds"
_BUCKETS: dict[str, int] = {
    floatToGoString(bound): number  # type: ignore[no-untyped-call]
    for number, bound in enumerate((*BOUNDS, float("inf")))
}
"""The indices of the latencies' buckets, by the label `le`."""


def _open_metrics(name: str, family: _Family, exemplars: Mapping[int, Exemplar]) -> Iterable[str]:
    """The lines of a family in OpenMetrics, where a counter's samples end with `_total`, and its name does not."""
    base = name.removesuffix("_total")
    for comment in family.comments:
        _, kind, _, rest = f"{comment} ".split(" ", 3)
        text = rest.strip()
        if kind == "TYPE":
            if text == "untyped" or (text == "counter" and base == name):
                text = "unknown"
        else:
            text = text.replace('"', r"\"")
        yield f"# {kind} {base} {text}"
    for sample in family.samples:
        yield sample + _exemplar(sample, exemplars) if name == _LATENCIES else sample


def _exemplar(sample: str, exemplars: Mapping[int, Exemplar]) -> str:
    found = re.search(r'_bucket\{.*le="([^"]+)"', sample)
    exemplar = exemplars.get(_BUCKETS[found[1]]) if found else None
    if exemplar is None:
        return ""
    return f' # {{trace_id="{exemplar.trace_id}"}} {exemplar.seconds:.6f} {exemplar.at:.3f}'


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_OPEN_METRICS = "application/openmetrics-text"
OPEN_METRICS_TYPE = f"{_OPEN_METRICS}; version=1.0.0; charset=utf-8"
_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_PATIENCE_S = 2.0
"""Seconds for a server's metrics: a scrape must not fail because one server hangs."""
_MAX_BYTES = 4 * 1024 * 1024


_OF_ENVOY = urllib.parse.quote(
    r"^(cluster\.(servers|workers|workers_http|servers_then_workers)\.|http\.(grpc|http)\.|overload\."
    r"|server\.(live|uptime|memory|total_connections))"
)
"""The statistics of Envoy that are shown; its administration's are not."""


class Metrics:
    """servers: returns their current state. session: returns the client that scrapes them.

    envoy: the socket of Envoy's administration; None if there is no Envoy. tenants, quotas: of a manager with tenants.
    certificate: returns when the ports' certificate expires, in seconds since 1970; None without TLS. exemplars:
    returns those of the scraped worker's latencies, by bucket; None without tracing.
    """

    def __init__(
        self,
        servers: Callable[[], list[ServerView]],
        session: Callable[[], aiohttp.ClientSession],
        envoy: Path | None = None,
        tenants: Tenants | None = None,
        quotas: Quotas | None = None,
        certificate: Callable[[], float | None] = lambda: None,
        exemplars: Callable[[], Mapping[int, Exemplar]] | None = None,
    ) -> None:
        self._exemplars = exemplars
        self._certificate = certificate
        self._servers = servers
        self._session = session
        self._envoy = envoy
        self._tenants = None if tenants is None or quotas is None else OfTenants(tenants, quotas.table)

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/metrics", self.metrics)]

    async def metrics(self, request: web.Request) -> web.Response:
        """Prometheus' text format; a server's own metrics have its id as the label `server`.

        With tracing, a scrape that accepts OpenMetrics gets it, with exemplars.
        """
        servers = self._servers()
        up = [server for server in servers if server.metrics_address and server.state is not ServerState.FAILED]
        # A server with several models is scraped once.
        asked = list({server.metrics_address: server for server in reversed(up)}.values())[::-1]
        ours, theirs, envoy = await asyncio.gather(
            asyncio.to_thread(_ours, Standing(servers, self._certificate()), self._tenants),
            asyncio.gather(*(self._fetch(server.metrics_address or "") for server in asked)),
            self._fetch_envoy(),
        )
        scraped = {server.id: text for server, text in zip(asked, theirs, strict=True)}
        # A server may have many lines, so another thread merges them.
        merged = await asyncio.to_thread(_merged, f"{ours}{envoy}", scraped)
        if self._exemplars is not None and _OPEN_METRICS in request.headers.get("Accept", ""):
            text = await asyncio.to_thread(merged.open_metrics, self._exemplars())
            return web.Response(body=text.encode(), headers={"Content-Type": OPEN_METRICS_TYPE})
        text = await asyncio.to_thread(merged.text)
        return web.Response(body=text.encode(), headers={"Content-Type": CONTENT_TYPE})

    async def _fetch(self, address: str) -> str | None:
        """The text of a server's metrics; None if it does not arrive in time, or is too long."""
        return await _fetched(self._session(), f"http://{address}/metrics")

    async def _fetch_envoy(self) -> str:
        """Envoy's statistics; empty if Envoy does not answer."""
        if self._envoy is None:
            return ""
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(self._envoy)), trust_env=False) as session:
            url = f"http://envoy/stats/prometheus?usedonly&filter={_OF_ENVOY}"
            return await _fetched(session, yarl.URL(url, encoded=True)) or ""


async def _fetched(session: aiohttp.ClientSession, url: str | yarl.URL) -> str | None:
    try:
        async with session.get(url, timeout=aiohttp.ClientTimeout(total=_PATIENCE_S)) as answer:
            return await _text(answer) if answer.status == 200 else None
    except (aiohttp.ClientError, asyncio.TimeoutError, ValueError):
        return None


def _merged(ours: str, scraped: dict[str, str | None]) -> Merged:
    """scraped: texts by server id; None if there is none."""
    merged = Merged()
    merged.add(ours)
    for server, text in scraped.items():
        merged.add(text or "", server)
    answered = {server: text is not None for server, text in scraped.items()}
    merged.add(generate_latest(_registry(Answered(answered))).decode())
    return merged


async def _text(answer: aiohttp.ClientResponse) -> str | None:
    found = bytearray()
    async for chunk in answer.content.iter_any():
        found += chunk
        if len(found) > _MAX_BYTES:
            return None
    return found.decode(errors="replace")


class Standing:
    """Metrics of the manager itself, and of the servers as the parent reports them.

    certificate: when the ports' certificate expires, in seconds since 1970; None without TLS.
    """

    def __init__(self, servers: list[ServerView], certificate: float | None = None) -> None:
        self._servers = servers
        self._certificate = certificate

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
        spaces = GaugeMetricFamily(
            "tritonembed_server_space_info",
            "1; the embedding space of a server's vectors, by its last check.",
            labels=["server", "model", "version", "embedding_space"],
        )
        for server in self._servers:
            for known in ServerState:
                state.add_metric([server.id, known.value], float(server.state is known))
            restarts.add_metric([server.id], server.restarts)
            replicas.add_metric([server.id], server.replicas)
            if server.space:
                spaces.add_metric([server.id, server.ensemble, server.version, server.space], 1)
        build = GaugeMetricFamily("tritonembed_build_info", "1; the version that runs.", labels=["version"])
        build.add_metric([version("tritonembed")], 1)
        expiry = GaugeMetricFamily(
            "tritonembed_certificate_expiry_timestamp_seconds",
            "When the certificate of the manager's ports expires (--tls-cert), in seconds since 1970.",
        )
        if self._certificate is not None:
            expiry.add_metric([], self._certificate)
        return state, restarts, replicas, spaces, build, expiry


class Answered:
    def __init__(self, answered: dict[str, bool]) -> None:
        self._answered = answered

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily(
            "tritonembed_server_scraped", "1 when a server gave its own metrics to this scrape.", labels=["server"]
        )
        for server, answered in self._answered.items():
            family.add_metric([server], float(answered))
        return (family,)


class OfTenants:
    """Metrics of the tenants in the file, over all workers: no caller can add a series."""

    def __init__(self, tenants: Tenants, table: QuotaTable) -> None:
        self._tenants = tenants
        self._table = table

    @staticmethod
    def described() -> list[Metric]:
        """The metrics of tenants, without samples."""
        return [_strangers(), *_of_tenants("tritonembed_tenant", ["tenant"])]

    def collect(self) -> Iterable[Metric]:
        strangers = _strangers()
        strangers.add_metric([], self._table.strangers)
        yield strangers
        of_all = [([tenant.name], tenant.slot) for tenant in self._tenants.all]
        of_models = [
            ([tenant.name, one.model], one.slot) for tenant in self._tenants.all for one in tenant.model_limits
        ]
        yield from self._families("tritonembed_tenant", ["tenant"], of_all)
        yield from self._families("tritonembed_tenant_model", ["tenant", "model"], of_models)

    def _families(self, name: str, label: list[str], rows: list[tuple[list[str], int]]) -> Iterable[Metric]:
        """rows: the labels' values, and the row in the quota table."""
        answered, failed, refused, tokens, in_flight = families = _of_tenants(name, label)
        for values, slot in rows:
            used = self._table.used(slot)
            answered.add_metric(values, used.answered)
            failed.add_metric(values, used.failed)
            for limit in ("requests", "tokens", "in_flight"):
                refused.add_metric([*values, limit], getattr(used, f"over_{limit}"))
            tokens.add_metric(values, used.tokens)
            in_flight.add_metric(values, used.in_flight)
        return families


def _strangers() -> CounterMetricFamily:
    return CounterMetricFamily(
        "tritonembed_envoy_unauthenticated_requests",
        "Requests that Envoy refused because no tenant has their key. Those that workers refused are in "
        "tritonembed_requests_total.",
    )


def _of_tenants(
    name: str, label: list[str]
) -> tuple[CounterMetricFamily, CounterMetricFamily, CounterMetricFamily, CounterMetricFamily, GaugeMetricFamily]:
    return (
        CounterMetricFamily(f"{name}_requests", "Requests that were answered.", labels=label),
        CounterMetricFamily(f"{name}_failed_requests", "Requests that failed.", labels=label),
        CounterMetricFamily(f"{name}_refused_requests", "Requests refused, by the limit.", labels=[*label, "limit"]),
        CounterMetricFamily(f"{name}_tokens", "Tokens of answers (num_tokens).", labels=label),
        GaugeMetricFamily(f"{name}_requests_in_flight", "Requests in flight.", labels=label),
    )


def _ours(standing: Standing, tenants: OfTenants | None = None) -> str:
    if os.environ.get(_FOLDER):
        counted = CollectorRegistry()
        MultiProcessCollector(counted)  # type: ignore[no-untyped-call]
    else:
        counted = REGISTRY
    of_tenants = b"" if tenants is None else generate_latest(_registry(tenants))
    return (generate_latest(counted) + generate_latest(_registry(standing)) + of_tenants).decode()


def _registry(collector: Standing | Answered | OfTenants) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(collector)
    return registry
