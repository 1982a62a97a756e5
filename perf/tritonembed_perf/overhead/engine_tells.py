"""What the embedder's engine counts about its requests, from the metrics port of Triton or of the manager."""

import time
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException

from tritonembed_engine.metrics import PERIOD_SECONDS
from tritonembed_perf.failures import UsageError
from tritonembed_perf.overhead.stages import EngineTimes

NAMES = (
    "tritonembed_embedded_requests_total",
    "tritonembed_queue_seconds_total",
    "tritonembed_request_compute_seconds_total",
)
TIMEOUT_S = 10.0
PATIENCE_S = 10.0
"""For what the engine hands over every PERIOD_SECONDS."""


@dataclass(frozen=True)
class EngineCounts:
    """Since the servers began, summed over all instances of the embedder."""

    requests: float
    queue_seconds: float
    compute_seconds: float


def read_counts(metrics: str) -> EngineCounts:
    """metrics: host:port of an HTTP server with /metrics. Raises UsageError where it has none of the engine's."""
    lines = _get(metrics).splitlines()
    samples = [[line for line in lines if line.startswith((f"{name}{{", f"{name} "))] for name in NAMES]
    if not all(samples):
        raise UsageError(f"http://{metrics}/metrics has no {NAMES[0]}: another server, or an older version")
    return EngineCounts(*(sum(float(line.rsplit(" ", 1)[1]) for line in some) for some in samples))


def read_counts_after(metrics: str, before: EngineCounts, requests: int) -> EngineCounts:
    """The counts once so many requests more are in them. Raises UsageError where they are not after some time."""
    until = time.monotonic() + PATIENCE_S
    while (grown := read_counts(metrics).requests - before.requests) < requests:
        if time.monotonic() > until:
            said = f"http://{metrics}/metrics counted {grown:g} of {requests} requests"
            raise UsageError(f"{said}: is it the server that answers them? --metrics names another")
        time.sleep(PERIOD_SECONDS / 2)
    # That reading may have fallen into the middle of a hand-over.
    time.sleep(PERIOD_SECONDS)
    return read_counts(metrics)


def mean_times(before: EngineCounts, after: EngineCounts) -> EngineTimes:
    """Of the requests between two readings, of which there is at least one."""
    requests = after.requests - before.requests
    queue, compute = after.queue_seconds - before.queue_seconds, after.compute_seconds - before.compute_seconds
    return EngineTimes(1e9 * queue / requests, 1e9 * compute / requests)


def _get(metrics: str) -> str:
    try:
        connection = HTTPConnection(metrics, timeout=TIMEOUT_S)
        try:
            connection.request("GET", "/metrics")
            answer = connection.getresponse()
            if answer.status != 200:
                raise UsageError(f"http://{metrics}/metrics answers with {answer.status}")
            return answer.read().decode(errors="replace")
        finally:
            connection.close()
    except (OSError, HTTPException):
        raise UsageError(f"nothing answers at http://{metrics}/metrics; --metrics says where metrics are") from None
