"""The stages of a request through client and server, from Triton's statistics and the engine's metrics."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tritonembed_engine.stub.metrics import PERIOD_SECONDS
from tritonembed_perf.failures import UsageError

ENSEMBLE, TOKENIZER, EMBEDDER = "embedding", "tokenizer", "embedder"

STAGES = (
    "client encode",
    "wire",
    "tokenizer queue",
    "tokenizer",
    "embedder queue",
    "embedder",
    "between models",
    "client decode",
)
"""`wire`: there and back. `between models`: Triton's ensemble scheduler, and with response senders the way into the
embedder's process and out of it."""

MODELS = (ENSEMBLE, TOKENIZER, EMBEDDER)
NAMES = (
    "tritonembed_embedded_requests_total",
    "tritonembed_queue_seconds_total",
    "tritonembed_request_compute_seconds_total",
)
TIMEOUT_S = 10.0
PATIENCE_S = 10.0
"""For the engine's counts to arrive: it exports them every PERIOD_SECONDS."""


@dataclass(frozen=True)
class ModelTimes:
    """Growth of one model's statistics, in mean nanoseconds per request. total: from its arrival to its answer."""

    requests: int
    total: float
    queue: float
    compute: float


@dataclass(frozen=True)
class EngineTimes:
    """Mean nanoseconds of a request in the embedder's engine: until it was launched, and from then to its vectors."""

    queue: float
    compute: float


def from_statistics(
    latency: float, encode: float, decode: float, models: Mapping[str, ModelTimes], engine: EngineTimes
) -> dict[str, float]:
    """Mean milliseconds of each stage. latency, encode, decode: the client's, in mean nanoseconds.

    If answers are a list, Triton's computation of the embedder is the time of the engine and the python around it.
    With response senders it is the hand-over alone, and the engine's clock has the rest.
    """
    tokenizer, embedder = models[TOKENIZER], models[EMBEDDER]
    # Triton's clock for a request still runs while it releases it, when the answer may be there already.
    whole = min(models[ENSEMBLE].total, latency)
    parts = {
        "tokenizer queue": tokenizer.queue,
        "tokenizer": tokenizer.compute,
        "embedder queue": embedder.queue + engine.queue,
        "embedder": max(embedder.compute - engine.queue, engine.compute),
    }
    # Means of different clocks, which may count the same moment twice: the parts are never more than the whole.
    fit = min(1.0, whole / max(sum(parts.values()), 1.0))
    parts = {stage: part * fit for stage, part in parts.items()}
    stages = {
        "client encode": encode,
        "wire": latency - whole,
        **parts,
        "between models": whole - sum(parts.values()),
        "client decode": decode,
    }
    # Differences of floats: a stage that takes nothing can come out a hair below it.
    return {stage: max(0.0, nanoseconds) / 1e6 for stage, nanoseconds in stages.items()}


@dataclass(frozen=True)
class EngineCounts:
    """Since the servers began, summed over all instances of the embedder."""

    requests: float
    queue_seconds: float
    compute_seconds: float


def read_counts(metrics: str) -> EngineCounts:
    """metrics: host:port of an HTTP server with /metrics. Raises UsageError if it has none of the engine's."""
    lines = _get(metrics).splitlines()
    samples = [[line for line in lines if line.startswith((f"{name}{{", f"{name} "))] for name in NAMES]
    if not all(samples):
        raise UsageError(f"http://{metrics}/metrics has no {NAMES[0]}: another server, or an older version")
    return EngineCounts(*(sum(float(line.rsplit(" ", 1)[1]) for line in some) for some in samples))


def read_counts_after(metrics: str, before: EngineCounts, requests: int) -> EngineCounts:
    """The counts once they have grown by `requests`. Raises UsageError if they have not after PATIENCE_S."""
    until = time.monotonic() + PATIENCE_S
    while (grown := read_counts(metrics).requests - before.requests) < requests:
        if time.monotonic() > until:
            counted = f"http://{metrics}/metrics counted {grown:g} of {requests} requests"
            raise UsageError(f"{counted}: is it the server that answers them? --metrics names another")
        time.sleep(PERIOD_SECONDS / 2)
    # That reading may have fallen into the middle of an export.
    time.sleep(PERIOD_SECONDS)
    return read_counts(metrics)


def mean_times(before: EngineCounts, after: EngineCounts) -> EngineTimes:
    """Of the requests between two readings; there is at least one."""
    requests = after.requests - before.requests
    queue, compute = after.queue_seconds - before.queue_seconds, after.compute_seconds - before.compute_seconds
    return EngineTimes(1e9 * queue / requests, 1e9 * compute / requests)


def read_statistics(server: str) -> dict[str, Any]:
    """Each model's cumulative statistics. Raises UsageError if the server has none."""
    try:
        with grpc.insecure_channel(server) as channel:
            stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            found = {}
            for name in MODELS:
                asked = service_pb2.ModelStatisticsRequest(name=name)
                versions = stub.ModelStatistics(asked, timeout=10).model_stats
                if not versions:
                    raise UsageError(f"{server} gives no statistics of {name}")
                found[name] = versions[0]
            return found
    except grpc.RpcError as error:
        status: Any = error
        raise UsageError(f"{server} gives no statistics of {', '.join(MODELS)}: {status.details()}") from None


def growth(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, ModelTimes]:
    """What was added between two readings, as means per request."""
    grown = {}
    for name in MODELS:
        old, new = before[name].inference_stats, after[name].inference_stats
        requests = new.success.count - old.success.count
        if not requests:
            raise UsageError(f"{name} answered no request meanwhile")

        def mean(*fields: str, old: Any = old, new: Any = new, requests: int = requests) -> float:
            return float(sum(getattr(new, field).ns - getattr(old, field).ns for field in fields)) / requests

        compute = ("compute_input", "compute_infer", "compute_output")
        grown[name] = ModelTimes(int(requests), mean("success"), mean("queue"), mean(*compute))
    return grown


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
