"""The options of `tritonembed-bench overhead`, and what it does from start to end."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tritonembed._batches import MAX_BATCH_SIZE
from tritonembed_perf.failures import UsageError, one_line_errors
from tritonembed_perf.output import check_output, write_report
from tritonembed_perf.shape_load import ShapeLoad, parse_loads

INTERRUPTED = 130
METRICS_PORT = 8002
"""Triton's own default."""


def overhead(
    context: typer.Context,
    model: Annotated[str, typer.Option("--model", help="Folder or hub's name of the model that is served.")],
    server: Annotated[
        str | None,
        typer.Option("--server", help="host:port of a running Triton; by default one is started, with traces."),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            "--metrics",
            help=f"host:port of --server's metrics, of a manager its HTTP port; by default port {METRICS_PORT} there.",
        ),
    ] = None,
    loads: Annotated[
        str, typer.Option("--loads", help="TOKENSxSENTENCES@CONCURRENCY, with commas between them.")
    ] = "50x1@1,50x1@16,50x64@1,50x64@4",
    requests: Annotated[int, typer.Option("--requests", min=1, help="For each load.")] = 200,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Write the stacked bars here, with .png and .svg added.")
    ] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the results here.")] = None,
) -> None:
    """Where a request's time goes, stage by stage, from Triton's traces and statistics and the engine's metrics.

    What follows `--` are options of `tritonembed-manager replica`, for the server that is started.
    """
    with one_line_errors():
        chosen = parse_loads(loads)
        check_output("--plot", plot)
        check_output("--json", json_path)
        if server is not None and context.args:
            raise UsageError(f"{context.args[0]} is for the server that is started without --server")
        if server is None and metrics is not None:
            raise UsageError("--metrics is for a running server (--server)")
        from tritonembed_perf.overhead.report import plot as plot_stages
        from tritonembed_perf.overhead.report import show

        report = _measure(model, server, metrics, chosen, requests, context.args)
        show(report)
        if plot is not None:
            plot_stages(plot, report)
        if json_path is not None:
            write_report(json_path, report)
        if report["interrupted"]:
            print("interrupted: what is above is all that was measured")
            raise typer.Exit(INTERRUPTED)


def _measure(
    model: str,
    server: str | None,
    metrics: str | None,
    loads: Sequence[ShapeLoad],
    requests: int,
    arguments: Sequence[str],
) -> dict[str, Any]:
    from tritonembed_perf.overhead.measuring import Measured, send_all
    from tritonembed_perf.overhead.stages import from_statistics, from_traces
    from tritonembed_perf.overhead.traced_server import traced_server
    from tritonembed_perf.overhead.triton_tells import read_traces
    from tritonembed_perf.run.corpus import WordTexts, check_length
    from tritonembed_perf.run.environment import describe_environment, typed_command
    from tritonembed_perf.run.suitable import check_sentences, check_server
    from tritonembed_perf.run.target import read_tokenizer

    files, tokenizer = read_tokenizer(model)
    words = WordTexts(tokenizer)
    shapes = [(f"--loads {load.name}", load.tokens, load.sentences) for load in loads]
    for name, tokens, _ in shapes:
        check_length(name, tokens, words, files.max_length)
    if server is None:
        check_sentences(shapes, MAX_BATCH_SIZE)
    else:
        check_server(server, files, words, shapes)
    environment = describe_environment(typed_command())

    def of_statistics(one: Measured) -> dict[str, float]:
        return from_statistics(list(one.client.values()), one.models, one.engine)

    if server is not None:
        metrics = metrics or f"{server.rpartition(':')[0]}:{METRICS_PORT}"
        measured, interrupted = send_all(server, metrics, loads, words, requests)
        stages, source = [of_statistics(one) for one in measured], "statistics"
    else:
        with tempfile.TemporaryDirectory(prefix="tritonembed-overhead-") as folder:
            with traced_server(model, Path(folder), arguments) as (running, traces):
                metrics = f"127.0.0.1:{running.metrics_port}"
                measured, interrupted = send_all(running.target, metrics, loads, words, requests)
            found = read_traces(traces)
        try:
            stages, source = [from_traces(one.client, found, one.engine) for one in measured], "traces"
        except ValueError:
            stages, source = [of_statistics(one) for one in measured], "statistics"
    rows = [
        {"load": load.name, "requests": requests, "milliseconds": stage}
        for load, stage in zip(loads, stages, strict=False)
    ]
    return {**environment, "source": source, "interrupted": interrupted, "rows": rows}
