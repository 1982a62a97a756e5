"""What the workers say they have done, as rates and latencies over a sliding window."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

RATE_WINDOW_S = 10.0
LATENCY_WINDOW_S = 60.0
_KEPT_LATENCIES = 4_000
_WELL = "OK"


@dataclass(frozen=True)
class Figures:
    """requests, errors, ejections: since the start. rate: a second, lately. p50_ms, p99_ms: the last minute's."""

    requests: int = 0
    errors: int = 0
    ejections: int = 0
    """Times a request found the server broken."""
    rate: float = 0.0
    p50_ms: float | None = None
    p99_ms: float | None = None


@dataclass
class _Flow:
    requests: int = 0
    errors: int = 0
    ejections: int = 0
    answered: int = 0
    counts: deque[tuple[float, int]] = field(default_factory=deque)
    latencies: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_KEPT_LATENCIES))

    def add(self, now: float, counted: Mapping[str, Any]) -> None:
        requests = int(counted.get("requests", 0))
        self.requests += requests
        errors = int(counted.get("errors", 0))
        self.errors += errors
        # What a caller cancelled is neither an error nor a sign of life.
        self.answered += int(counted["codes"].get(_WELL, 0)) if "codes" in counted else requests - errors
        self.ejections += int(counted.get("ejections", 0))
        self.counts.append((now, requests))
        self.latencies.extend((now, float(latency)) for latency in counted.get("latencies", ()))
        _forget(self.counts, now - RATE_WINDOW_S)
        _forget(self.latencies, now - LATENCY_WINDOW_S)

    def figures(self, now: float) -> Figures:
        _forget(self.counts, now - RATE_WINDOW_S)
        _forget(self.latencies, now - LATENCY_WINDOW_S)
        rate = sum(count for _, count in self.counts) / RATE_WINDOW_S
        ordered = sorted(latency for _, latency in self.latencies)
        p50, p99 = _quantile(ordered, 0.5), _quantile(ordered, 0.99)
        return Figures(self.requests, self.errors, self.ejections, round(rate, 2), p50, p99)


class Traffic:
    """Per server and in all."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._servers: dict[str, _Flow] = {}
        self._all = _Flow()
        self.retries = 0
        """Requests sent again, charged to the budget."""
        self.moves = 0
        """Requests sent again because their server died."""

    def add(self, stats: Mapping[str, Any]) -> None:
        """One worker's counts since its last ones: of its clients' requests, and under `servers` of each server's."""
        now = self._clock()
        self._all.add(now, stats)
        self.retries += int(stats.get("retries", 0))
        self.moves += int(stats.get("moves", 0))
        for id, counted in stats.get("servers", {}).items():
            self._servers.setdefault(id, _Flow()).add(now, counted)

    def of(self, id: str) -> Figures:
        """Of one server."""
        flow = self._servers.get(id)
        return flow.figures(self._clock()) if flow else Figures()

    def in_all(self) -> Figures:
        """Of the clients' requests."""
        return self._all.figures(self._clock())

    def answered(self, id: str) -> int:
        """Requests that a server has answered well since the start."""
        flow = self._servers.get(id)
        return flow.answered if flow else 0

    def forget(self, id: str) -> None:
        """A server that has left."""
        self._servers.pop(id, None)


def _forget(entries: deque[tuple[float, Any]], before: float) -> None:
    while entries and entries[0][0] < before:
        entries.popleft()


def _quantile(ordered: list[float], part: float) -> float | None:
    return round(ordered[min(len(ordered) - 1, int(part * len(ordered)))], 3) if ordered else None
