"""What a worker counted, as Prometheus metrics. In multiprocess mode (PROMETHEUS_MULTIPROC_DIR) workers add up.

Requests are counted by `meter.Meter` and come here once a second, or when somebody scrapes: prometheus_client would
cost each of them several writes to a file in shared memory.
"""

from collections.abc import Sequence

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from tritonembed_manager.serve.meter import BOUNDS, Tallies, Tally
from tritonembed_manager.serve.server import Server


class _Latencies(Histogram):
    """A histogram that takes what was counted elsewhere."""

    def take(self, tally: Tally) -> None:
        """Add a tally's buckets."""
        for bucket, count in zip(self._buckets, tally.buckets, strict=True):
            if count:
                bucket.inc(count)
        self._sum.inc(tally.seconds)


class WorkerMetrics:
    """The metrics of the data plane; one for each process."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        def counter(name: str, help_text: str, *labels: str) -> Counter:
            return Counter(f"tritonembed_{name}", help_text, labels, registry=registry)

        def gauge(name: str, help_text: str, *labels: str) -> Gauge:
            return Gauge(f"tritonembed_{name}", help_text, labels, registry=registry, multiprocess_mode="livesum")

        def latencies(name: str, help_text: str, *labels: str) -> _Latencies:
            return _Latencies(f"tritonembed_{name}", help_text, labels, registry=registry, buckets=BOUNDS)

        self._requests = counter("requests", "Requests of clients, by the gRPC status they ended with.", "code")
        self._duration = latencies("request_duration_seconds", "From a request's arrival to its answer; OK ones only.")
        self._in_flight = gauge("requests_in_flight", "Requests of clients that have no answer yet.")
        self._waiting = gauge("requests_waiting", "Those of them that wait for a server.")
        self._retries = counter("retries", "Requests sent again after a server broke, charged to the retry budget.")
        self._moves = counter("moves", "Requests sent again because the server they were on died.")
        self._server_requests = counter(
            "server_requests", "Requests sent to a server; ABORTED ones were taken off it.", "server", "code"
        )
        self._server_duration = latencies(
            "server_request_duration_seconds", "From sending it to a server to its answer; OK ones only.", "server"
        )
        self._server_in_flight = gauge("server_requests_in_flight", "Requests at a server.", "server")
        self._ejections = counter("server_ejections", "Times a request found a server broken.", "server")
        self._known: set[str] = set()

    def take(self, tallies: Tallies, *, in_flight: int, waiting: int, servers: Sequence[Server]) -> None:
        """Add what was counted since the last time. in_flight, waiting: requests of this worker."""
        _add_codes(self._requests, tallies.total)
        self._duration.take(tallies.total)
        self._in_flight.set(in_flight)
        self._waiting.set(waiting)
        self._retries.inc(tallies.retries)
        self._moves.inc(tallies.moves)
        for key, tally in tallies.servers.items():
            _add_codes(self._server_requests, tally, key)
            self._server_duration.labels(key).take(tally)
            self._ejections.labels(key).inc(tally.ejections)
        known = {server.key for server in servers}
        for server in servers:
            self._server_in_flight.labels(server.key).set(len(server.attempts))
        for key in self._known - known:
            self._server_in_flight.labels(key).set(0)
        self._known = known


def _add_codes(counter: Counter, tally: Tally, *labels: str) -> None:
    for code, count in tally.codes.items():
        counter.labels(*labels, code.name).inc(count)
