"""`tritonembed-bench overhead`: the stages of a request, from Triton's statistics and the engine's metrics."""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tritonembed_engine.stub.metrics import PERIOD_SECONDS
from tritonembed_manager.tune.loadgen.clients import TIMEOUT_S, run_clients
from tritonembed_manager.tune.loadgen.kserve import GrpcSender
from tritonembed_manager.tune.loadgen.load import Load, Work
from tritonembed_manager.tune.loads import LoadShape
from tritonembed_perf.failures import BenchError, UsageError, end_interrupted
from tritonembed_perf.loadgen.grpc_protocols import KServe
from tritonembed_perf.loadgen.requests import parse_loads
from tritonembed_perf.loadgen.target import encode_loads
from tritonembed_perf.reports import begin_report, check_output, print_table, write_report
from tritonembed_perf.server import running_server
from tritonembed_perf.settings import METRICS_PORT, OverheadSettings
from tritonembed_protocol.framing import unframe

MODELS = ENSEMBLE, TOKENIZER, EMBEDDER = "embedding", "tokenizer", "embedder"

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

COUNTERS = (
    "tritonembed_embedded_requests_total",
    "tritonembed_queue_seconds_total",
    "tritonembed_request_compute_seconds_total",
)
WARM_UP_REQUESTS = 32
REPEAT = 20
QUESTION_TIMEOUT_S = 10.0
PATIENCE_S = 10.0
"""For the engine's counts to arrive: it exports them every PERIOD_SECONDS."""


def divide_time(settings: OverheadSettings, arguments: Sequence[str]) -> None:
    """Measure each load, show the table, write report and chart. arguments: of the server that is started.

    Raises BenchError, and KeyboardInterrupt after Ctrl-C.
    """
    check_output("--plot", settings.plot)
    check_output("--json", settings.json_path)
    requests = encode_loads(settings.model, parse_loads(settings.loads), settings.server)
    report = begin_report()
    rows: list[dict[str, Any]] = []
    interrupted = False
    with _server(settings, arguments) as (server, metrics):
        try:
            for load, payloads in requests.items():
                stages = measure(server, metrics, load, payloads, settings.requests)
                rows.append({"load": str(load), "requests": settings.requests, "milliseconds": stages})
        except KeyboardInterrupt:
            interrupted = True
    if rows:
        _show(rows)
        if settings.plot is not None:
            _plot(settings.plot, rows)
        write_report(settings.json_path, report | {"source": "statistics", "interrupted": interrupted, "rows": rows})
    if interrupted:
        end_interrupted()


@contextmanager
def _server(settings: OverheadSettings, arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Where the server listens, and where its metrics are."""
    if settings.server is not None:
        yield settings.server, settings.metrics or f"{settings.server.rpartition(':')[0]}:{METRICS_PORT}"
        return
    with running_server(settings.model, arguments) as running:
        yield running.target, f"127.0.0.1:{running.metrics_port}"


def measure(server: str, metrics: str, load: LoadShape, payloads: Sequence[bytes], requests: int) -> dict[str, float]:
    """Mean milliseconds of each stage. Raises UsageError for a server without statistics, BenchError."""
    read_statistics(server)
    cold = read_counts(metrics)
    _send(server, payloads, load.at_once, WARM_UP_REQUESTS)
    counts = read_counts_after(metrics, cold, WARM_UP_REQUESTS)
    before = read_statistics(server)
    latency = _send(server, payloads, load.at_once, requests)
    models = growth(before, read_statistics(server))
    engine = mean_times(counts, read_counts_after(metrics, counts, requests))
    encode, decode = _client_times(server, payloads[0], load.sentences)
    return from_statistics(latency, encode, decode, models, engine)


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


@dataclass(frozen=True)
class EngineCounts:
    """Since the servers began, summed over all instances of the embedder."""

    requests: float
    queue_seconds: float
    compute_seconds: float


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


def read_counts(metrics: str) -> EngineCounts:
    """metrics: host:port of an HTTP server with /metrics. Raises UsageError if it has none of the engine's."""
    lines = _get(metrics).splitlines()
    samples = [[line for line in lines if line.startswith((f"{name}{{", f"{name} "))] for name in COUNTERS]
    if not all(samples):
        raise UsageError(f"http://{metrics}/metrics has no {COUNTERS[0]}: another server, or an older version")
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
            answers = {
                name: stub.ModelStatistics(service_pb2.ModelStatisticsRequest(name=name), timeout=QUESTION_TIMEOUT_S)
                for name in MODELS
            }
            return {name: answer.model_stats[0] for name, answer in answers.items()}
    except grpc.RpcError as error:
        status: Any = error
        raise UsageError(f"{server} gives no statistics of {', '.join(MODELS)}: {status.details()}") from None
    except IndexError:
        raise UsageError(f"{server} gives no statistics of {', '.join(MODELS)}") from None


def growth(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, ModelTimes]:
    """What was added between two readings, as means per request."""
    grown = {}
    for name in MODELS:
        old, new = before[name].inference_stats, after[name].inference_stats
        requests = int(new.success.count - old.success.count)
        if not requests:
            raise UsageError(f"{name} answered no request meanwhile")
        fields = ("success", "queue", "compute_input", "compute_infer", "compute_output")
        total, queue, *compute = ((getattr(new, field).ns - getattr(old, field).ns) / requests for field in fields)
        grown[name] = ModelTimes(requests, total, queue, sum(compute))
    return grown


def _get(metrics: str) -> str:
    try:
        connection = HTTPConnection(metrics, timeout=QUESTION_TIMEOUT_S)
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


def _send(server: str, payloads: Sequence[bytes], at_once: int, count: int) -> float:
    """Mean nanoseconds of `count` requests."""
    load = Load(at_once, None, count, None, 0.0, TIMEOUT_S, seed=0)
    part = run_clients(Work(GrpcSender(server), tuple(payloads)), load, 1).part
    for kind, message in part.messages.items():
        raise BenchError(f"a request failed with {kind}: {message}")
    return float(part.latencies.mean()) * 1e9


def _client_times(server: str, payload: bytes, sentences: int) -> tuple[float, float]:
    """Nanoseconds that a client in Python takes to encode a request, and to decode its answer."""
    protocol = KServe(server)
    framed = service_pb2.ModelInferRequest.FromString(payload).raw_input_contents[0]
    texts = [bytes(text).decode() for text in unframe(framed)]

    async def ask() -> bytes:
        transport = protocol.sender().open(1, TIMEOUT_S)
        try:
            return await transport.send(payload, 0)
        finally:
            await transport.close()

    answer = asyncio.run(ask())
    return _nanoseconds(lambda: protocol.encode(texts)), _nanoseconds(lambda: protocol.decode(answer, sentences))


def _nanoseconds(call: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEAT):
        began = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - began)
    return float(np.median(times))


def _show(rows: Sequence[dict[str, Any]]) -> None:
    """A table on standard output."""
    stages = {row["load"]: row["milliseconds"] for row in rows}
    totals = {load: sum(parts.values()) for load, parts in stages.items()}
    cells = [
        [stage, *(f"{parts[stage]:,.3f} {parts[stage] / totals[load]:>4.0%}" for load, parts in stages.items())]
        for stage in STAGES
    ]
    cells.append(["in all", *(f"{total:,.3f}     " for total in totals.values())])
    print("mean milliseconds of a request, and its share; the wire is the way there and back")
    print_table(["stage", *stages], cells)


def _plot(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """A stacked bar per load."""
    from tritonembed_perf.plots import stacked_bars

    stacked_bars(
        path,
        "Where a request's time goes (tokens x sentences @ requests at once)",
        [row["load"] for row in rows],
        {stage: [row["milliseconds"][stage] for row in rows] for stage in STAGES},
        "% of a request's time, from Triton's statistics and the engine's metrics",
        [f"{sum(row['milliseconds'].values()):,.2f} ms" for row in rows],
    )
