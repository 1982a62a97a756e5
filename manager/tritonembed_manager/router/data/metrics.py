"""A worker's counts of its requests, as lines for its parent and as Prometheus metrics.

`Meter` counts the requests, cheaply. Its counts are collected once per second, or at a scrape. With prometheus_client
alone, each request would cost several writes to a file in shared memory. In multiprocess mode
(PROMETHEUS_MULTIPROC_DIR) the metrics of all workers add up.
"""

import random
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import prometheus_client as prometheus
from prometheus_client import REGISTRY, CollectorRegistry

from tritonembed_manager.router.data.fair_queue import FIRST, SECOND
from tritonembed_manager.router.data.pool import Loads
from tritonembed_manager.router.data.upstream import Upstream
from tritonembed_manager.router.interfaces import Admission

BOUNDS = tuple(round(step * 10.0**power, 6) for power in range(-4, 2) for step in (1.0, 1.5, 2.0, 3.0, 5.0, 7.0))[4:]
"""Upper bounds of the latency histograms' buckets, in seconds, from 0.5 ms to 70 s. One more bucket is above them."""
_SAMPLE = 500
"""Latencies kept individually between two collections."""


@dataclass
class Tally:
    """Requests since the last collection, of one server or of all servers."""

    codes: Counter[grpc.StatusCode] = field(default_factory=Counter)
    """Requests by final status, including OK."""
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    """Answered requests by latency. Refusals are left out: they take no time, and would look like a fast server."""
    seconds: float = 0.0
    """Sum of the latencies of answered requests."""
    latencies: list[float] = field(default_factory=list)
    """Latencies in seconds: all of them, or a uniform sample."""
    timed: int = 0
    """Number of requests of which the sample was taken."""
    ejections: int = 0
    tokens: int = 0
    """Sum of `num_tokens` over the answers that have it."""

    def add(self, code: grpc.StatusCode, seconds: float) -> None:
        """A request ended."""
        self.codes[code] += 1
        if code is not grpc.StatusCode.OK:
            return
        self.buckets[bisect_left(BOUNDS, seconds)] += 1
        self.seconds += seconds
        self.timed += 1
        if len(self.latencies) < _SAMPLE:
            self.latencies.append(seconds)
        elif (place := int(random.random() * self.timed)) < _SAMPLE:
            self.latencies[place] = seconds

    @property
    def requests(self) -> int:
        """Number of requests that ended."""
        return sum(self.codes.values())

    @property
    def errors(self) -> int:
        """Number of requests that failed. Requests whose caller went away (CANCELLED) are no failures."""
        return self.requests - self.codes[grpc.StatusCode.OK] - self.codes[grpc.StatusCode.CANCELLED]


@dataclass
class Waits:
    """Times from a request's arrival to its sending to a server, as in a Tally."""

    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    seconds: float = 0.0


@dataclass
class Tallies:
    """All counts since the last collection."""

    total: Tally = field(default_factory=Tally)
    servers: dict[str, Tally] = field(default_factory=dict)
    models: dict[tuple[str, str], Tally] = field(default_factory=dict)
    """Counts by ensemble and version. Requests that were sent to no model are only in the total."""
    waits: dict[int, Waits] = field(default_factory=dict)
    """Waits by priority."""
    retries: int = 0
    """Requests sent again and charged to the retry budget."""
    moves: int = 0
    """Requests sent again without a charge: the server they were on died or was ejected."""
    hedges: Counter[str] = field(default_factory=Counter)
    """Second attempts for late requests, by outcome: won or lost."""


@dataclass(frozen=True, slots=True)
class Exemplar:
    """A request of a histogram's bucket. at: seconds since 1970."""

    trace_id: str
    seconds: float
    at: float


class Meter:
    """The counters of one worker."""

    def __init__(self) -> None:
        self.tallies = Tallies()
        self.on_end: Callable[[Admission, grpc.StatusCode, float], None] | None = None
        """Called with what is known of a request that has ended, its code and its seconds."""
        self.trace_id: Callable[[], str] | None = None
        """Returns the id of the current request's trace, empty if it is not sampled; None without tracing."""
        self.exemplars: dict[int, Exemplar] = {}
        """The last traced request of each bucket of the latencies."""

    def ended(self, admission: Admission, code: grpc.StatusCode, seconds: float) -> None:
        """A client's request ended, or was refused before it was admitted."""
        self.request(code, seconds, admission.model, admission.tokens, admission.version or "")
        if self.on_end is not None:
            self.on_end(admission, code, seconds)
        if self.trace_id is not None and code is grpc.StatusCode.OK and (trace_id := self.trace_id()):
            self.exemplars[bisect_left(BOUNDS, seconds)] = Exemplar(trace_id, seconds, time.time())

    def request(
        self, code: grpc.StatusCode, seconds: float, model: str = "", tokens: int = 0, version: str = ""
    ) -> None:
        """A client's request ended. model: its ensemble, if it was sent to one. tokens: of its answer."""
        self.tallies.total.add(code, seconds)
        if model:
            key = model, version
            tally = self.tallies.models.get(key)
            if tally is None:
                tally = self.tallies.models[key] = Tally()
            tally.add(code, seconds)
            tally.tokens += tokens

    def waited(self, priority: int, seconds: float) -> None:
        """A request, or the first part of it, was sent to a server after that time."""
        waits = self.tallies.waits.get(priority)
        if waits is None:
            waits = self.tallies.waits[priority] = Waits()
        waits.buckets[bisect_left(BOUNDS, seconds)] += 1
        waits.seconds += seconds

    def attempt(self, server: str, code: grpc.StatusCode, seconds: float) -> None:
        """A request to a server ended. If it was taken off the server, it counts as ABORTED."""
        self._server(server).add(code, seconds)

    def tokens(self, server: str, count: int) -> None:
        """A server's answer reported `count` tokens."""
        self.tallies.total.tokens += count
        self._server(server).tokens += count

    def ejected(self, server: str) -> None:
        """A server was found broken."""
        self._server(server).ejections += 1

    def again(self, *, charged: bool) -> None:
        """A request is sent again. charged: to the retry budget."""
        if charged:
            self.tallies.retries += 1
        else:
            self.tallies.moves += 1

    def hedged(self, *, won: bool) -> None:
        """A late request was sent to a second server. won: it was answered first there."""
        self.tallies.hedges["won" if won else "lost"] += 1

    def collect(self) -> Tallies:
        """Return the counts since the last collection, and begin again at zero."""
        found, self.tallies = self.tallies, Tallies()
        return found

    def _server(self, server: str) -> Tally:
        tally = self.tallies.servers.get(server)
        if tally is None:
            tally = self.tallies.servers[server] = Tally()
        return tally


_MS = 1000.0


def stats_line(tallies: Tallies, in_flight: int, waiting: int, servers: Sequence[Upstream]) -> dict[str, Any]:
    """The content of a `stats` line. Counts are since the last line; in_flight and waiting are of this moment.

    latencies: milliseconds, a fair sample. buckets: answers by latency; `bounds` has their upper bounds in seconds, and
    the last bucket has the slower answers.
    """
    at = {server.key: len(server.attempts) for server in servers}
    quiet = Tally()
    return {
        **_counts(tallies.total),
        "in_flight": in_flight,
        "waiting": waiting,
        "retries": tallies.retries,
        "moves": tallies.moves,
        "bounds": BOUNDS,
        "servers": {
            key: {**_counts(tallies.servers.get(key, quiet)), "in_flight": at.get(key, 0)}
            for key in (*at, *(key for key in tallies.servers if key not in at))
        },
    }


def _counts(tally: Tally) -> dict[str, Any]:
    return {
        "requests": tally.requests,
        "errors": tally.errors,
        "codes": {code.name: count for code, count in tally.codes.items()},
        "ejections": tally.ejections,
        "tokens": tally.tokens,
        "latencies": [round(seconds * _MS, 2) for seconds in tally.latencies],
        "buckets": tally.buckets,
    }


class _Latencies(prometheus.Histogram):
    """A histogram to which counts made elsewhere are added."""

    def take(self, tally: Tally | Waits) -> None:
        """Add a tally's buckets."""
        for bucket, count in zip(self._buckets, tally.buckets, strict=True):
            if count:
                bucket.inc(count)
        self._sum.inc(tally.seconds)


class WorkerMetrics:
    """The metrics of the data plane; one instance per process."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        def counter(name: str, help_text: str, *labels: str) -> prometheus.Counter:
            return prometheus.Counter(f"tritonembed_{name}", help_text, labels, registry=registry)

        def gauge(name: str, help_text: str, *labels: str) -> prometheus.Gauge:
            return prometheus.Gauge(
                f"tritonembed_{name}", help_text, labels, registry=registry, multiprocess_mode="livesum"
            )

        def latencies(name: str, help_text: str, *labels: str) -> _Latencies:
            return _Latencies(f"tritonembed_{name}", help_text, labels, registry=registry, buckets=BOUNDS)

        self._requests = counter("requests", "Requests of clients, by the gRPC status they ended with.", "code")
        self._duration = latencies("request_duration_seconds", "From a request's arrival to its answer; OK ones only.")
        self._waits = latencies(
            "queue_wait_seconds", "From a request's arrival to the sending of its first part to a server.", "priority"
        )
        self._in_flight = gauge("requests_in_flight", "Requests of clients that have no answer yet.")
        self._waiting = gauge("requests_waiting", "Those of them that wait for a server.")
        self._retries = counter("retries", "Requests sent again after a server broke, charged to the retry budget.")
        self._moves = counter("moves", "Requests sent again because the server they were on died.")
        self._hedges = counter("hedges", "Late requests sent to a second server; won: answered there first.", "outcome")
        for outcome in ("won", "lost"):
            self._hedges.labels(outcome)
        self._server_requests = counter(
            "server_requests", "Requests sent to a server; ABORTED ones were taken off it.", "server", "code"
        )
        self._server_duration = latencies(
            "server_request_duration_seconds", "From sending it to a server to its answer; OK ones only.", "server"
        )
        self._server_in_flight = gauge("server_requests_in_flight", "Requests at a server.", "server")
        self._load = gauge(
            "load",
            "Seconds of work that a server has before it, and its share of what waits in the manager; 0 until a "
            "server was busy once.",
            "server",
        )
        self._work = counter(
            "work_seconds",
            "Seconds of a server's work that came, by the estimate of tritonembed_load; its rate is servers kept busy.",
        )
        self._queued = gauge(
            "requests_queued",
            "Requests that wait in the manager's queue, by priority and tenant.",
            "priority",
            "tenant",
        )
        self._tokens = counter("server_answered_tokens", "Tokens of a server's answers (num_tokens).", "server")
        self._ejections = counter("server_ejections", "Times a request found a server broken.", "server")
        self._model_requests = counter(
            "model_requests",
            "Requests of clients that were for a model, by the gRPC status.",
            "model",
            "version",
            "code",
        )
        self._model_duration = latencies(
            "model_request_duration_seconds", "From a model's request to its answer; OK ones only.", "model", "version"
        )
        self._model_tokens = counter("model_tokens", "Tokens of a model's answers (num_tokens).", "model", "version")
        self._known: set[str] = set()
        self._known_loads: set[str] = set()
        self._known_queues: set[tuple[int, str]] = {(priority, "") for priority in (FIRST, SECOND)}

    def take_loads(self, loads: Loads, queued: Mapping[tuple[int, str], int]) -> None:
        """Show the work before the servers, and the number of requests that wait, by priority and tenant."""
        self._work.inc(loads.came)
        for key, seconds in loads.seconds.items():
            self._load.labels(key).set(seconds)
        for key in self._known_loads - set(loads.seconds):
            self._load.labels(key).set(0)
        self._known_loads = set(loads.seconds)
        self._known_queues |= set(queued)
        for priority, tenant in self._known_queues:
            self._queued.labels(str(priority), tenant).set(queued.get((priority, tenant), 0))

    def take(
        self,
        tallies: Tallies,
        *,
        in_flight: int,
        waiting: int,
        servers: Sequence[Upstream],
        name: Callable[[str], str] = str,
    ) -> None:
        """Add the counts since the last collection. in_flight, waiting: requests of this worker.

        name: returns clients' name of a model, for its ensemble.
        """
        for (model, version), tally in tallies.models.items():
            _add_codes(self._model_requests, tally, name(model), version)
            self._model_duration.labels(name(model), version).take(tally)
            self._model_tokens.labels(name(model), version).inc(tally.tokens)
        _add_codes(self._requests, tallies.total)
        self._duration.take(tallies.total)
        self._in_flight.set(in_flight)
        self._waiting.set(waiting)
        for priority, waits in tallies.waits.items():
            self._waits.labels(str(priority)).take(waits)
        self._retries.inc(tallies.retries)
        self._moves.inc(tallies.moves)
        for outcome, count in tallies.hedges.items():
            self._hedges.labels(outcome).inc(count)
        for key, tally in tallies.servers.items():
            _add_codes(self._server_requests, tally, key)
            self._server_duration.labels(key).take(tally)
            self._tokens.labels(key).inc(tally.tokens)
            self._ejections.labels(key).inc(tally.ejections)
        known = {server.key for server in servers}
        for server in servers:
            self._server_in_flight.labels(server.key).set(len(server.attempts))
        for key in self._known - known:
            self._server_in_flight.labels(key).set(0)
        self._known = known


def _add_codes(counter: prometheus.Counter, tally: Tally, *labels: str) -> None:
    for code, count in tally.codes.items():
        counter.labels(*labels, code.name).inc(count)
