"""`tritonembed-bench overhead`: the stages of a request, from Triton's metrics and the engine's."""

import asyncio
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2

from tritonembed_engine.stub.metrics import PERIOD_SECONDS
from tritonembed_manager.tune.loadgen.clients import TIMEOUT_S, run_clients
from tritonembed_manager.tune.loadgen.load import Load, Work, key_metadata
from tritonembed_manager.tune.loads import LoadShape
from tritonembed_perf.failures import BenchError, UsageError, end_interrupted
from tritonembed_perf.loadgen.protocols import KServeProtocol
from tritonembed_perf.loadgen.target import encode_loads
from tritonembed_perf.reports import begin_report, check_output, print_table, write_report
from tritonembed_perf.server import running_server
from tritonembed_perf.settings import METRICS_PORT, OverheadSettings
from tritonembed_protocol.framing import unframe

MODELS = ENSEMBLE, TOKENIZER, EMBEDDER = "embedding", "tokenizer", "embedder"

REQUESTS, TOTAL = "nv_inference_request_success", "nv_inference_request_duration_us"
QUEUE = "nv_inference_queue_duration_us"
COMPUTE = tuple(f"nv_inference_compute_{part}_duration_us" for part in ("input", "infer", "output"))
EMBEDDED = "tritonembed_embedded_requests_total"
ENGINE_QUEUE, ENGINE_COMPUTE = "tritonembed_queue_seconds_total", "tritonembed_request_compute_seconds_total"
COUNTERS = (
    *((name, "") for name in (EMBEDDED, ENGINE_QUEUE, ENGINE_COMPUTE)),
    *((name, model) for name in (REQUESTS, TOTAL, QUEUE, *COMPUTE) for model in MODELS),
)
"""The engine's in the embedder, for which a request's computation begins with its first batch; Triton's by model."""

Counters = dict[tuple[str, str], float]
SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
MODEL_LABEL = re.compile(r'\bmodel="(\w+)"')
WARM_UP_REQUESTS = 32
REPEAT = 20
QUESTION_TIMEOUT_S = 10.0
PATIENCE_S = 10.0
"""How long to wait for the engine's counts, which it exports every PERIOD_SECONDS."""


def divide_time(settings: OverheadSettings, arguments: Sequence[str]) -> None:
    """Measure each load, show the table, write report and chart. arguments: of the server that is started.

    Raises BenchError, and KeyboardInterrupt after Ctrl-C.
    """
    check_output("--plot", settings.plot)
    check_output("--json", settings.json_path)
    requests = encode_loads(settings.model, settings.loads, settings.server, settings.api_key)
    report = begin_report()
    rows: list[dict[str, Any]] = []
    interrupted = False
    with _server(settings, arguments) as (server, metrics):
        try:
            for load, payloads in requests.items():
                stages = measure(server, metrics, load, payloads, settings.requests, settings.api_key)
                rows.append({"load": str(load), "requests": settings.requests, "milliseconds": stages})
        except KeyboardInterrupt:
            interrupted = True
    if rows:
        _show(rows)
        if settings.plot is not None:
            _plot(settings.plot, rows)
        write_report(settings.json_path, report | {"interrupted": interrupted, "rows": rows})
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


def measure(
    server: str,
    metrics: str,
    load: LoadShape,
    payloads: Sequence[bytes],
    requests: int,
    api_key: str | None = None,
) -> dict[str, float]:
    """Mean milliseconds of each stage. Raises UsageError for a place without these metrics, BenchError."""
    protocol = KServeProtocol(server, api_key=api_key)
    cold = read_counters(metrics, api_key)
    _send(protocol, payloads, load.at_once, WARM_UP_REQUESTS)
    before = read_counters_after(metrics, cold, WARM_UP_REQUESTS, api_key)
    latency = _send(protocol, payloads, load.at_once, requests)
    after = read_counters_after(metrics, before, requests, api_key)
    encode, decode = _client_times(protocol, payloads[0], load.sentences)
    return from_growth(latency, encode, decode, {key: after[key] - before[key] for key in after})


def from_growth(latency: float, encode: float, decode: float, grown: Counters) -> dict[str, float]:
    """Mean milliseconds of each stage. latency, encode, decode: the client's; grown: while these requests were sent.

    `wire`: there and back. `between models`: Triton's ensemble scheduler, and with response senders the way into the
    embedder's process and out of it.
    If answers are a list, Triton's computation of the embedder is the time of the engine and the python around it.
    With response senders it is the hand-over alone, and the engine's clock has the rest.
    """

    def triton(model: str, *names: str) -> float:
        return sum(grown[name, model] for name in names) / grown[REQUESTS, model] / 1e3

    def engine(name: str) -> float:
        return grown[name, ""] / grown[EMBEDDED, ""] * 1e3

    # Triton's clock for a request still runs while it releases it, when the answer may be there already.
    whole = min(triton(ENSEMBLE, TOTAL), latency)
    parts = {
        "tokenizer queue": triton(TOKENIZER, QUEUE),
        "tokenizer": triton(TOKENIZER, *COMPUTE),
        "embedder queue": triton(EMBEDDER, QUEUE) + engine(ENGINE_QUEUE),
        "embedder": max(triton(EMBEDDER, *COMPUTE) - engine(ENGINE_QUEUE), engine(ENGINE_COMPUTE)),
    }
    # Means of different clocks, which may count the same moment twice: the parts are never more than the whole.
    fit = min(1.0, whole / max(sum(parts.values()), 1e-6))
    parts = {stage: part * fit for stage, part in parts.items()}
    stages = {
        "client encode": encode,
        "wire": latency - whole,
        **parts,
        "between models": whole - sum(parts.values()),
        "client decode": decode,
    }
    # Differences of floats: a stage that takes nothing can come out a hair below it.
    return {stage: max(0.0, milliseconds) for stage, milliseconds in stages.items()}


def read_counters(metrics: str, api_key: str | None = None) -> Counters:
    """Summed over instances and servers. metrics: host:port of an HTTP server with /metrics.

    Raises UsageError if one is missing there.
    """
    sums: Counters = {}
    for name, labels, value in SAMPLE.findall(read_metrics(metrics, api_key)):
        model = MODEL_LABEL.search(labels)
        key = name, model[1] if model else ""
        if key in COUNTERS:
            sums[key] = sums.get(key, 0.0) + float(value)
    for key in COUNTERS:
        if key not in sums:
            raise UsageError(f"http://{metrics}/metrics has no {key[0]}: another server, or an older version")
    return sums


def read_counters_after(metrics: str, before: Counters, requests: int, api_key: str | None = None) -> Counters:
    """The counters once they have grown by `requests`. Raises UsageError if they have not after PATIENCE_S."""
    until = time.monotonic() + PATIENCE_S
    while (grown := read_counters(metrics, api_key)[EMBEDDED, ""] - before[EMBEDDED, ""]) < requests:
        if time.monotonic() > until:
            counted = f"http://{metrics}/metrics counted {grown:g} of {requests} requests"
            raise UsageError(f"{counted}: is it the server that answers them? --metrics names another")
        time.sleep(PERIOD_SECONDS / 2)
    # That reading may have fallen into the middle of an export.
    time.sleep(PERIOD_SECONDS)
    return read_counters(metrics, api_key)


def read_metrics(metrics: str, api_key: str | None = None) -> str:
    """The text of /metrics. metrics: host:port. Raises UsageError if nothing answers there."""
    try:
        connection = HTTPConnection(metrics, timeout=QUESTION_TIMEOUT_S)
        try:
            connection.request("GET", "/metrics", headers=dict(key_metadata(api_key)))
            answer = connection.getresponse()
            if answer.status in (401, 403):
                raise UsageError(f"http://{metrics}/metrics wants the key (--api-key) of a tenant with `monitor`")
            if answer.status != 200:
                raise UsageError(f"http://{metrics}/metrics answers with {answer.status}")
            return answer.read().decode(errors="replace")
        finally:
            connection.close()
    except (OSError, HTTPException):
        raise UsageError(f"nothing answers at http://{metrics}/metrics; --metrics says where metrics are") from None


def _send(protocol: KServeProtocol, payloads: Sequence[bytes], at_once: int, count: int) -> float:
    """Mean milliseconds of `count` requests."""
    load = Load(at_once, None, count, None, 0.0, TIMEOUT_S, seed=0)
    part = run_clients(Work(protocol.sender(), tuple(payloads)), load, 1).samples
    for kind, message in part.messages.items():
        raise BenchError(f"a request failed with {kind}: {message}")
    return float(part.latencies.mean()) * 1e3


def _client_times(protocol: KServeProtocol, payload: bytes, sentences: int) -> tuple[float, float]:
    """Milliseconds that a client in Python takes to encode a request, and to decode its answer."""
    framed = service_pb2.ModelInferRequest.FromString(payload).raw_input_contents[0]
    texts = [bytes(text).decode() for text in unframe(framed)]

    async def ask() -> bytes:
        transport = protocol.sender().open(1, TIMEOUT_S)
        try:
            return await transport.send(payload, 0)
        finally:
            await transport.close()

    answer = asyncio.run(ask())
    return _milliseconds(lambda: protocol.encode(texts)), _milliseconds(lambda: protocol.decode(answer, sentences))


def _milliseconds(call: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEAT):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return float(np.median(times)) * 1e3


def _show(rows: Sequence[dict[str, Any]]) -> None:
    """A table on standard output."""
    totals = [sum(row["milliseconds"].values()) for row in rows]
    cells = []
    for stage in rows[0]["milliseconds"]:
        parts = [row["milliseconds"][stage] for row in rows]
        shares = [f"{part:,.3f} {part / total:>4.0%}" for part, total in zip(parts, totals, strict=True)]
        cells.append([stage, *shares])
    cells.append(["in all", *(f"{total:,.3f}     " for total in totals)])
    print("mean milliseconds of a request, and its share; the wire is the way there and back")
    print_table(["stage", *(row["load"] for row in rows)], cells)


def _plot(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """A stacked bar per load."""
    from tritonembed_perf.reports import stacked_bars

    stacked_bars(
        path,
        "Where a request's time goes (tokens x sentences @ requests at once)",
        [row["load"] for row in rows],
        {stage: [row["milliseconds"][stage] for row in rows] for stage in rows[0]["milliseconds"]},
        "% of a request's time, from Triton's metrics and the engine's",
        [f"{sum(row['milliseconds'].values()):,.2f} ms" for row in rows],
    )
