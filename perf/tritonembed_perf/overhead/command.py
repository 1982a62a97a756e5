"""The options of `tritonembed-bench overhead`, and what it does from start to end."""

import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tritonembed_perf.failures import UsageError, one_line_errors
from tritonembed_perf.output import check_output, write_report
from tritonembed_perf.shape_load import ShapeLoad, parse_loads

WARM_UP_REQUESTS = 32
TIMEOUT_S = 60.0
BAR_WIDTH = 40


def overhead(
    context: typer.Context,
    model: Annotated[str, typer.Option("--model", help="Folder or hub's name of the model that is served.")],
    server: Annotated[
        str | None,
        typer.Option("--server", help="host:port of a running Triton; by default one is started, with traces."),
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
    """Where a request's time goes, stage by stage, from Triton's traces and statistics.

    What follows `--` are options of `tritonembed-manager replica`, for the server that is started.
    """
    with one_line_errors():
        chosen = parse_loads(loads)
        check_output("--plot", plot)
        check_output("--json", json_path)
        if server is not None and context.args:
            raise UsageError(f"{context.args[0]} is for the server that is started without --server")
        report = _measure(model, server, chosen, requests, context.args)
        _show(report)
        if plot is not None:
            _plot(plot, report)
        if json_path is not None:
            write_report(json_path, report)


def _measure(
    model: str, server: str | None, loads: Sequence[ShapeLoad], requests: int, arguments: Sequence[str]
) -> dict[str, Any]:
    from tritonembed_perf.overhead.stages import from_statistics, from_traces
    from tritonembed_perf.overhead.traced_server import traced_server
    from tritonembed_perf.overhead.triton_tells import read_traces
    from tritonembed_perf.run.corpus import WordTexts, check_length
    from tritonembed_perf.run.environment import describe_environment, typed_command
    from tritonembed_perf.run.target import read_tokenizer

    files, tokenizer = read_tokenizer(model)
    words = WordTexts(tokenizer)
    for load in loads:
        check_length(f"--loads {load.name}", load.tokens, words, files.max_length)
    environment = describe_environment(typed_command())
    if server is not None:
        measured = [_send(server, load, words, requests) for load in loads]
        stages = [from_statistics(list(client.values()), models) for client, models in measured]
        source = "statistics"
    else:
        with tempfile.TemporaryDirectory(prefix="tritonembed-overhead-") as folder:
            with traced_server(model, Path(folder), arguments) as (running, traces):
                measured = [_send(running.target, load, words, requests) for load in loads]
            found = read_traces(traces)
        try:
            stages = [from_traces(client, found) for client, _ in measured]
            source = "traces"
        except ValueError:
            stages = [from_statistics(list(client.values()), models) for client, models in measured]
            source = "statistics"
    rows = [
        {"load": load.name, "requests": requests, "milliseconds": stage}
        for load, stage in zip(loads, stages, strict=True)
    ]
    return {**environment, "source": source, "rows": rows}


def _send(server: str, load: ShapeLoad, words: Any, requests: int) -> tuple[dict[str, Any], dict[str, Any]]:
    from tritonembed_perf.overhead.client import send_timed
    from tritonembed_perf.overhead.triton_tells import growth, read_statistics

    count = min(requests, 64)
    lengths = [load.tokens] * (load.sentences * count)
    texts = words.of_lengths(lengths, random.Random(load.tokens))
    pool = [texts[start : start + load.sentences] for start in range(0, len(texts), load.sentences)]

    def some(number: int) -> list[list[str]]:
        return [pool[i % count] for i in range(number)]

    read_statistics(server)
    send_timed(server, some(WARM_UP_REQUESTS), load.concurrency, f"warm-{load.name}-", TIMEOUT_S)
    before = read_statistics(server)
    times = send_timed(server, some(requests), load.concurrency, f"{load.name}-", TIMEOUT_S)
    return times, growth(before, read_statistics(server))


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from tritonembed_perf.overhead.stages import STAGES
    from tritonembed_perf.run.environment import machine_line

    rows = report["rows"]
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(80, 24 + 20 * len(rows)))
    print(machine_line(report["machine"]))
    print(f"mean milliseconds of a request, and its share, from Triton's {report['source']}")
    table = Table()
    table.add_column("stage")
    for row in rows:
        table.add_column(row["load"], justify="right")
    totals = [sum(row["milliseconds"].values()) for row in rows]
    for stage in STAGES:
        values = [row["milliseconds"][stage] for row in rows]
        if stage == "reply" and not any(values):
            continue
        cells = [f"{value:,.3f} {value / total:>4.0%}" for value, total in zip(values, totals, strict=True)]
        table.add_row("wire, both ways" if stage == "wire" and report["source"] == "statistics" else stage, *cells)
    table.add_section()
    table.add_row("in all", *(f"{total:,.3f}     " for total in totals))
    console.print(table)
    _show_bars(rows, STAGES)


def _show_bars(rows: Sequence[dict[str, Any]], stages: Sequence[str]) -> None:
    """The stacked bar in letters: each stage's own, as long as its share."""
    letters = dict(zip(stages, "ewqtQEbrd", strict=True))
    width = max(len(row["load"]) for row in rows)
    for row in rows:
        total = sum(row["milliseconds"].values())
        bar, done, drawn = "", 0.0, 0
        for stage in stages:
            done += row["milliseconds"][stage] / total
            bar += letters[stage] * (round(done * BAR_WIDTH) - drawn)
            drawn = round(done * BAR_WIDTH)
        print(f"{row['load']:>{width}} {bar}")
    print(", ".join(f"{letter} {stage}" for stage, letter in letters.items()))


def _plot(path: Path, report: dict[str, Any]) -> None:
    from tritonembed_perf.overhead.stages import STAGES
    from tritonembed_perf.plots import stacked_bars

    rows = report["rows"]
    used = [stage for stage in STAGES if any(row["milliseconds"][stage] for row in rows)]
    stacked_bars(
        path,
        "Where a request's time goes (tokens x sentences @ requests at once)",
        [row["load"] for row in rows],
        {stage: [row["milliseconds"][stage] for row in rows] for stage in used},
        f"% of a request's time, from Triton's {report['source']}",
        [f"{sum(row['milliseconds'].values()):,.2f} ms" for row in rows],
    )
