"""The options of `tritonembed-bench run`, and what it does from start to end."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from tritonembed_perf.failures import BenchError, UsageError, one_line_errors
from tritonembed_perf.output import check_output, write_report

INTERRUPTED = 130
DAY_S = 86_400


class ProtocolChoice(str, Enum):
    """`--protocol`."""

    kserve = "kserve"
    openai = "openai"
    arctic = "arctic"


class DistributionChoice(str, Enum):
    """`--distribution`."""

    fixed = "fixed"
    uniform = "uniform"
    normal = "normal"


class EncodingChoice(str, Enum):
    """`--encoding`."""

    base64 = "base64"
    float = "float"
    bytes = "bytes"


class ReferenceChoice(str, Enum):
    """`--reference`."""

    server = "server"
    model = "model"


class PresetChoice(str, Enum):
    """`--preset`."""

    h200_long = "h200-long"
    h200_short = "h200-short"
    a10g_long = "a10g-long"
    a10g_short = "a10g-short"


MODEL_HELP = (
    "What the server serves. kserve: the folder or the hub's name of the model, whose tokenizer counts the tokens, or "
    "a Triton model's name (then --tokenizer too). openai, arctic: the name at the server; by default the one it has."
)


def run(
    server: Annotated[
        str | None, typer.Option("--server", help="host:port, or a URL.", show_default="localhost:50050; openai: :8080")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help=MODEL_HELP)] = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="Folder or hub's name of the model, where --model is neither.")
    ] = None,
    protocol: Annotated[ProtocolChoice, typer.Option("--protocol")] = ProtocolChoice.kserve,
    encoding: Annotated[
        EncodingChoice | None, typer.Option("--encoding", help="openai only; bytes is vLLM's.", show_default="base64")
    ] = None,
    batch_sizes: Annotated[
        str | None, typer.Option("--batch-sizes", help="Sentences a request; a row each.", show_default="1,16,64")
    ] = None,
    requests: Annotated[
        int | None, typer.Option("--requests", min=1, help="Measured for each batch size.", show_default="1024")
    ] = None,
    duration: Annotated[
        float | None,
        typer.Option("--duration", min=0.1, max=DAY_S, help="Seconds for each batch size instead of --requests."),
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", min=1, help="Requests in flight, closed loop.", show_default="16")
    ] = None,
    rate: Annotated[
        float | None, typer.Option("--rate", min=0.001, max=1e6, help="Requests a second instead, open loop, Poisson.")
    ] = None,
    prompt_length: Annotated[
        int | None, typer.Option("--prompt-length", min=1, help="Tokens, special ones included.", show_default="50")
    ] = None,
    distribution: Annotated[
        DistributionChoice | None,
        typer.Option("--distribution", help="Of lengths up to --prompt-length.", show_default="fixed"),
    ] = None,
    dataset: Annotated[
        Path | None, typer.Option("--dataset", help="Texts of a .txt, .jsonl, .csv or .parquet file instead.")
    ] = None,
    preset: Annotated[PresetChoice | None, typer.Option("--preset", help="A load that Arctic publishes.")] = None,
    processes: Annotated[
        int | None,
        typer.Option("--processes", min=1, max=256, help="Of the client.", show_default="a quarter of the cores"),
    ] = None,
    warm_up: Annotated[
        float, typer.Option("--warm-up", min=0, max=DAY_S, help="Seconds before the clock starts.")
    ] = 1.0,
    timeout: Annotated[float, typer.Option("--timeout", min=0.001, max=DAY_S, help="Seconds for one request.")] = 60.0,
    reference: Annotated[
        ReferenceChoice,
        typer.Option(
            "--reference", help="Right vectors: the server's for each text alone, or transformers' (float32)."
        ),
    ] = ReferenceChoice.server,
    min_cosine: Annotated[float, typer.Option("--min-cosine", min=0, max=1, help="To the right vector.")] = 0.999,
    seed: Annotated[int, typer.Option("--seed", help="Of texts and arrivals.")] = 0,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the results here.")] = None,
) -> None:
    """Measure a running server: closed loop, or open loop with --rate.

    Every answer is checked. Exit code 1: a wrong vector, or no answer at all. Ctrl-C shows what was measured so far.
    """
    given = {name: value.value if isinstance(value, Enum) else value for name, value in locals().items()}
    with one_line_errors():
        from tritonembed_perf.run.settings import make_settings, parse_batch_sizes

        if batch_sizes is not None:
            given["batch_sizes"] = parse_batch_sizes(batch_sizes)
        json_path = given.pop("json_path")
        check_output("--json", json_path)
        _run(make_settings(given), json_path)


def _run(settings: Any, json_path: Path | None) -> None:
    # What is slow to import is imported once the options are known to be good.
    from tritonembed_perf.run.clients import Interrupt
    from tritonembed_perf.run.environment import describe_environment, machine_line, typed_command
    from tritonembed_perf.run.measure import Row, Texts, measure, prepare
    from tritonembed_perf.run.progress import ProgressBar
    from tritonembed_perf.run.report import as_json, settings_as_json, show_table
    from tritonembed_perf.run.server_processes import ServerProcesses
    from tritonembed_perf.run.target import find_target

    target = find_target(settings)
    texts = Texts(settings, target)
    too_large = [size for size in settings.batch_sizes if size > (target.served.max_batch_size or size)]
    if too_large:
        raise UsageError(f"--batch-sizes {too_large[0]}: the server takes {target.served.max_batch_size} a request")
    environment = describe_environment(typed_command())
    print(
        f"{machine_line(environment['machine'])}\n{settings.server}: {target.served.model}, {target.served.description}"
    )
    processes = ServerProcesses.find(settings.server)
    rows: list[Row] = []
    interrupt = Interrupt()
    try:
        for batch_size in settings.batch_sizes:
            work = prepare(settings, target, texts.requests(batch_size))
            with ProgressBar(settings, batch_size) as bar:
                rows.append(measure(settings, work, processes, bar, interrupt))
            if interrupt.happened:
                break
    except KeyboardInterrupt:
        interrupt.happened = True
    if interrupt.happened:
        # Of a batch size whose warm-up had not ended there is nothing to tell.
        rows = [row for row in rows if row.outcome.is_telling]
    show_table(rows, settings)
    if json_path is not None:
        report = {
            **environment,
            "server": {"model": target.served.model, "description": target.served.description},
            "settings": settings_as_json(settings),
            "interrupted": interrupt.happened,
            "rows": [as_json(row, settings) for row in rows],
        }
        write_report(json_path, report)
    _finish(rows, interrupt.happened)


def _finish(rows: Any, interrupted: bool) -> None:
    wrong = sum(row.outcome.part.wrong for row in rows)
    if wrong:
        raise BenchError(f"{wrong} answers were wrong")
    if interrupted:
        print("interrupted: what is above is all that was measured")
        raise typer.Exit(INTERRUPTED)
    silent = [row.batch_size for row in rows if not row.outcome.requests]
    if silent:
        raise BenchError(f"no request of {silent[0]} sentences was answered")
