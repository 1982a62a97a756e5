"""`tritonembed-bench overhead` from start to end."""

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from tritonembed_perf.failures import BenchError, UsageError, end_interrupted, one_line_errors
from tritonembed_perf.reports import (
    check_output,
    describe_environment,
    machine_line,
    print_table,
    typed_command,
    write_report,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from tritonembed_manager.tune.loads import LoadShape

METRICS_PORT = 8002
"""Triton's own default."""

METRICS_HELP = f"host:port of --server's metrics, of a manager its HTTP port; by default port {METRICS_PORT} there."

WARM_UP_REQUESTS = 32
TEXTS = 1024
REPEAT = 20
TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Settings:
    """The options."""

    model: Annotated[str, Option(help="Folder or hub's name of the model that is served.")]
    server: Annotated[str | None, Option(help="host:port of a running Triton; by default one is started.")] = None
    metrics: Annotated[str | None, Option(help=METRICS_HELP)] = None
    loads: Annotated[str, Option(help="TOKENSxSENTENCES@CONCURRENCY, with commas between them.")] = (
        "50x1@1,50x1@16,50x64@1,50x64@4"
    )
    requests: Annotated[int, Option(min=1, help="For each load.")] = 200
    plot: Annotated[Path | None, Option(help="Write the stacked bars here, with .png and .svg added.")] = None
    json_path: Annotated[Path | None, Option(None, "--json", help="Write the results here.")] = None


def overhead(settings: Settings, context: typer.Context) -> None:
    """Where a request's time goes, stage by stage, from Triton's statistics and the engine's metrics.

    What follows `--` are options of `tritonembed-manager replica`, for the server that is started.
    """
    with one_line_errors():
        check_output("--plot", settings.plot)
        check_output("--json", settings.json_path)
        if settings.server is not None and context.args:
            raise UsageError(f"{context.args[0]} is for the server that is started without --server")
        if settings.server is None and settings.metrics is not None:
            raise UsageError("--metrics is for a running server (--server)")
        report = _measure_all(settings, context.args)
        _show(report)
        if settings.plot is not None:
            _plot(settings.plot, report)
        write_report(settings.json_path, report)
        if report["interrupted"]:
            end_interrupted()


def _measure_all(settings: Settings, arguments: Sequence[str]) -> dict[str, Any]:
    """The report. Ctrl-C ends it early, or is raised if there is nothing to show yet."""
    from tritonembed_manager.tune.loads import WordTexts
    from tritonembed_perf.loadgen.requests import parse_loads
    from tritonembed_perf.loadgen.target import check_shapes, read_tokenizer
    from tritonembed_perf.server import ServerEndedError, running_server

    loads = parse_loads(settings.loads)
    files, tokenizer = read_tokenizer(settings.model)
    shapes = [(f"--loads {load}", load.tokens, load.sentences) for load in loads]
    check_shapes(shapes, files, WordTexts(tokenizer), settings.server)
    environment = describe_environment(typed_command())
    rows: list[dict[str, Any]] = []
    interrupted = False
    with ExitStack() as stack:
        if settings.server is not None:
            server = settings.server
            metrics = settings.metrics or f"{server.rpartition(':')[0]}:{METRICS_PORT}"
        else:
            try:
                running = stack.enter_context(running_server(settings.model, arguments))
            except ServerEndedError as error:
                raise UsageError(f"the server does not start: {error}") from None
            server, metrics = running.target, f"127.0.0.1:{running.metrics_port}"
        try:
            for load in loads:
                stages = measure(server, metrics, load, tokenizer, settings.requests)
                rows.append({"load": str(load), "requests": settings.requests, "milliseconds": stages})
        except KeyboardInterrupt:
            if not rows:
                raise
            interrupted = True
    return {**environment, "source": "statistics", "interrupted": interrupted, "rows": rows}


def measure(server: str, metrics: str, load: "LoadShape", tokenizer: "Tokenizer", requests: int) -> dict[str, float]:
    """Mean milliseconds of each stage. Raises UsageError for a server without statistics, BenchError."""
    from tritonembed_perf.loadgen.requests import encoded_requests
    from tritonembed_perf.overhead import times

    payloads = encoded_requests(tokenizer, load, TEXTS)
    times.read_statistics(server)
    cold = times.read_counts(metrics)
    _send(server, payloads, load.at_once, WARM_UP_REQUESTS)
    counts = times.read_counts_after(metrics, cold, WARM_UP_REQUESTS)
    before = times.read_statistics(server)
    latency = _send(server, payloads, load.at_once, requests)
    models = times.growth(before, times.read_statistics(server))
    engine = times.mean_times(counts, times.read_counts_after(metrics, counts, requests))
    encode, decode = _client_times(server, payloads[0], load.sentences)
    return times.from_statistics(latency, encode, decode, models, engine)


def _send(server: str, payloads: Sequence[bytes], at_once: int, count: int) -> float:
    """Mean nanoseconds of `count` requests."""
    from tritonembed_manager.tune.loadgen.clients import run_clients
    from tritonembed_manager.tune.loadgen.kserve import GrpcSender
    from tritonembed_manager.tune.loadgen.load import Load, Work

    load = Load(at_once, None, count, None, 0.0, TIMEOUT_S, seed=0)
    part = run_clients(Work(GrpcSender(server), tuple(payloads)), load, 1).part
    for kind, message in part.messages.items():
        raise BenchError(f"a request failed with {kind}: {message}")
    return float(part.latencies.mean()) * 1e9


def _client_times(server: str, payload: bytes, sentences: int) -> tuple[float, float]:
    """Nanoseconds that a client in Python takes to encode a request, and to decode its answer."""
    from tritonclient.grpc import service_pb2

    from tritonembed_perf.loadgen.grpc_protocols import KServe
    from tritonembed_protocol.framing import unframe

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
    return statistics.median(times)


def _show(report: dict[str, Any]) -> None:
    """A table on standard output."""
    from tritonembed_perf.overhead.times import STAGES

    loads = {row["load"]: row["milliseconds"] for row in report["rows"]}
    totals = {load: sum(stages.values()) for load, stages in loads.items()}
    cells = [
        [stage, *(f"{stages[stage]:,.3f} {stages[stage] / totals[load]:>4.0%}" for load, stages in loads.items())]
        for stage in STAGES
    ]
    cells.append(["in all", *(f"{total:,.3f}     " for total in totals.values())])
    print(machine_line(report["machine"]))
    print("mean milliseconds of a request, and its share; the wire is the way there and back")
    print_table(["stage", *loads], cells)


def _plot(path: Path, report: dict[str, Any]) -> None:
    """A stacked bar per load."""
    from tritonembed_perf.overhead.times import STAGES
    from tritonembed_perf.plots import stacked_bars

    rows = report["rows"]
    stacked_bars(
        path,
        "Where a request's time goes (tokens x sentences @ requests at once)",
        [row["load"] for row in rows],
        {stage: [row["milliseconds"][stage] for row in rows] for stage in STAGES},
        "% of a request's time, from Triton's statistics and the engine's metrics",
        [f"{sum(row['milliseconds'].values()):,.2f} ms" for row in rows],
    )
