"""The status: a JSON object that `/status`, the status page and `tritonembed-manager status` show.

{"type": "status", "version": str, "model": str, "models": [str, …] if there are several,
 "policy": str, "time": unix seconds, "uptime_s": s, "draining": bool,
 "lame_duck": bool,
 "warnings": [str, …], "workers": {"count": n, "ready": n, "restarts": n},
 "totals": {"in_flight": n, "waiting": n, "requests": n, "errors": n, "rate": 1/s, "p50_ms": ms or null, "p99_ms": …,
            "tokens": n, "token_rate": 1/s, "client_errors": {code: n, …}, "service_errors": {code: n, …},
            "ejections": n, "retries": n, "moves": n, "replicas": n, "ready": servers, "servers": n, "restarts": n},
 "servers": [{…ServerView.to_json(), "model": str, "for_s": s in this state, "in_flight": n, "work_bytes": n,
              "requests": n, "errors": n, "ejections": n, "rate": 1/s, "p50_ms": ms or null,
              "p99_ms": ms or null, "tokens": n, "token_rate": 1/s, "client_errors": {…}, "service_errors": {…}}, …]}
`Traffic` makes rates and latencies over a sliding window, and divides errors between clients and the service.

The parent makes a status once per second. If the parent hangs and the status is older than 5 s, the worker adds
"age_s": s and a warning.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

from tritonembed_manager.router.control.registry import UpstreamRegistry
from tritonembed_manager.router.data.load_table import LoadTable
from tritonembed_manager.router.data.model_names import ServedNames
from tritonembed_manager.router.interfaces import ServerState

RATE_WINDOW_S = 10.0
LATENCY_WINDOW_S = 60.0
_KEPT_LATENCIES = 4_000
_WELL = "OK"
CLIENTS_OWN = frozenset(
    (
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "UNAUTHENTICATED",
        "FAILED_PRECONDITION",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "CANCELLED",
    )
)
"""Codes of requests that no service could have answered: invalid requests, and requests whose caller went away."""


@dataclass(frozen=True)
class Figures:
    """requests, errors, ejections, tokens: since the start. rate, token_rate: per second, over RATE_WINDOW_S.

    p50_ms, p99_ms: latencies over LATENCY_WINDOW_S. client_errors, service_errors: failed requests by code since the
    start, cancelled requests included.
    """

    requests: int = 0
    errors: int = 0
    ejections: int = 0
    """How often a request found the server broken."""
    rate: float = 0.0
    p50_ms: float | None = None
    p99_ms: float | None = None
    tokens: int = 0
    token_rate: float = 0.0
    client_errors: dict[str, int] = field(default_factory=dict)
    service_errors: dict[str, int] = field(default_factory=dict)


@dataclass
class _Flow:
    requests: int = 0
    errors: int = 0
    ejections: int = 0
    answered: int = 0
    tokens: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    counts: deque[tuple[float, tuple[int, int]]] = field(default_factory=deque)
    latencies: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_KEPT_LATENCIES))

    def add(self, now: float, counted: Mapping[str, Any]) -> None:
        requests = int(counted.get("requests", 0))
        self.requests += requests
        errors = int(counted.get("errors", 0))
        self.errors += errors
        # A cancelled request is neither an error nor a sign that the server is alive.
        self.answered += int(counted["codes"].get(_WELL, 0)) if "codes" in counted else requests - errors
        self.ejections += int(counted.get("ejections", 0))
        tokens = int(counted.get("tokens", 0))
        self.tokens += tokens
        self.codes.update(counted.get("codes", {}))
        self.counts.append((now, (requests, tokens)))
        self.latencies.extend((now, float(latency)) for latency in counted.get("latencies", ()))
        _forget(self.counts, now - RATE_WINDOW_S)
        _forget(self.latencies, now - LATENCY_WINDOW_S)

    def figures(self, now: float) -> Figures:
        _forget(self.counts, now - RATE_WINDOW_S)
        _forget(self.latencies, now - LATENCY_WINDOW_S)
        rate, token_rate = (round(sum(count[which] for _, count in self.counts) / RATE_WINDOW_S, 2) for which in (0, 1))
        ordered = sorted(latency for _, latency in self.latencies)
        p50, p99 = _quantile(ordered, 0.5), _quantile(ordered, 0.99)
        failed = {code: count for code, count in sorted(self.codes.items()) if count and code != _WELL}
        return Figures(
            requests=self.requests,
            errors=self.errors,
            ejections=self.ejections,
            rate=rate,
            p50_ms=p50,
            p99_ms=p99,
            tokens=self.tokens,
            token_rate=token_rate,
            client_errors={code: count for code, count in failed.items() if code in CLIENTS_OWN},
            service_errors={code: count for code, count in failed.items() if code not in CLIENTS_OWN},
        )


class Traffic:
    """Traffic per server and in total. clock: seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._servers: dict[str, _Flow] = {}
        self._all = _Flow()
        self.retries = 0
        """Requests sent again and charged to the retry budget."""
        self.moves = 0
        """Failovers: requests sent again because their server died."""

    def add(self, stats: Mapping[str, Any]) -> None:
        """Add a worker's `stats` line: counts of its clients' requests, and under `servers` counts of each server."""
        now = self._clock()
        self._all.add(now, stats)
        self.retries += int(stats.get("retries", 0))
        self.moves += int(stats.get("moves", 0))
        for id, counted in stats.get("servers", {}).items():
            self._servers.setdefault(id, _Flow()).add(now, counted)

    def of(self, id: str) -> Figures:
        """The figures of a server."""
        flow = self._servers.get(id)
        return flow.figures(self._clock()) if flow else Figures()

    def in_all(self) -> Figures:
        """The figures of the requests of all clients."""
        return self._all.figures(self._clock())

    def answered(self, id: str) -> int:
        """Requests that a server has answered successfully since the start."""
        flow = self._servers.get(id)
        return flow.answered if flow else 0

    def forget(self, id: str) -> None:
        """Forget a server that has left."""
        self._servers.pop(id, None)


def _forget(entries: deque[tuple[float, Any]], before: float) -> None:
    while entries and entries[0][0] < before:
        entries.popleft()


def _quantile(ordered: list[float], part: float) -> float | None:
    return round(ordered[min(len(ordered) - 1, int(part * len(ordered)))], 3) if ordered else None


_LAME_DUCK = "health is negative before the end, and requests are still answered (--lame-duck)"


class Snapshots:
    """Makes statuses."""

    def __init__(
        self,
        registry: UpstreamRegistry,
        traffic: Traffic,
        table: LoadTable,
        *,
        names: ServedNames,
        policy: str,
        warnings: Sequence[str] = (),
        more_warnings: Callable[[], Sequence[str]] = list,
        not_admitted: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """warnings: about the settings. more_warnings: returns warnings about the current state. clock: seconds.

        not_admitted: returns the number of requests in flight that no worker has admitted.
        """
        self._not_admitted = not_admitted
        self._registry = registry
        self._traffic = traffic
        self._table = table
        self._fixed: dict[str, Any] = {"type": "status", "version": _version()}
        self._policy = policy
        self._warnings = list(warnings)
        self._more_warnings = more_warnings
        self._names = names
        self._clock = clock
        self._began = clock()

    def take(self, *, draining: bool, lame_duck: bool = False, workers: dict[str, int]) -> dict[str, Any]:
        """The status now. workers: their figures."""
        now = self._clock()
        servers = [
            {
                **upstream.view().to_json(),
                "model": self._names.of_ensemble(upstream.model.name),
                "why": f"ejected: {upstream.ejected}" if now < upstream.ejected_until else upstream.why,
                "for_s": round(now - upstream.since, 1),
                "in_flight": self._table.in_flight(upstream.slot),
                "work_bytes": self._table.work(upstream.slot),
                **asdict(self._traffic.of(upstream.id)),
            }
            for upstream in self._registry.upstreams.values()
        ]
        in_flight = sum(server["in_flight"] for server in servers)
        ready = [server for server in servers if server["state"] == ServerState.READY.value]
        return {
            **self._fixed,
            "model": self._names.model,
            **({"models": [each.model for each in self._names.models]} if self._names.more else {}),
            "policy": self._policy,
            "time": round(time.time(), 3),
            "uptime_s": round(now - self._began, 1),
            "draining": draining,
            "lame_duck": lame_duck and not draining,
            "warnings": [
                *self._warnings,
                *self._more_warnings(),
                *([_LAME_DUCK] if lame_duck and not draining else []),
            ],
            "workers": workers,
            "totals": {
                "in_flight": in_flight,
                "waiting": max(0, self._table.admitted() + self._not_admitted() - in_flight),
                **asdict(self._traffic.in_all()),
                "retries": self._traffic.retries,
                "moves": self._traffic.moves,
                "replicas": sum(server["replicas"] for server in ready),
                "ready": len(ready),
                "servers": len(servers),
                "restarts": sum(server["restarts"] for server in servers),
            },
            "servers": servers,
        }


def _version() -> str:
    try:
        return metadata.version("tritonembed")
    except metadata.PackageNotFoundError:
        return "unknown"
