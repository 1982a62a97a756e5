"""`tritonembed-bench perf-analyzer`: NVIDIA's load generator against Triton and against the manager, side by side."""

import csv
import json
import os
import random
import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
    from tritonembed_manager.tune.loads import LoadShape, WordTexts
    from tritonembed_perf.perf_analyzer.binary import Program

TEXTS_PREPARED = 32
"""Requests with different texts."""

WINDOWS = 3
ANY_SPREAD = 999
"""Percent by which windows may differ: WINDOWS sets how long is measured, not the noise of the machine."""

ASYNC_FROM = 16
"""From this many requests in flight on, perf_analyzer needs fewer threads than requests."""

PATIENCE_S = 120
LATENCIES = ("p50", "p90", "p99")
COMPUTE = ("Server Compute Input", "Server Compute Infer", "Server Compute Output")


@dataclass(frozen=True)
class Settings:
    """The options."""

    model: Annotated[str, Option(help="Folder or hub's name of the model that is served.")]
    loads: Annotated[str, Option(help="TOKENSxSENTENCES@CONCURRENCY, with commas between them.")] = (
        "50x1@1,50x1@16,50x16@16,50x64@4"
    )
    seconds: Annotated[float, Option(min=0.1, max=600, help=f"Of each of {WINDOWS} windows.")] = 2.0
    server: Annotated[str | None, Option(help="host:port of a running Triton.")] = None
    manager: Annotated[str | None, Option(help="host:port of a running manager.")] = None
    program: Annotated[
        Path | None,
        Option(None, "--perf-analyzer", help="The program; by default on PATH, else from a tritonclient wheel."),
    ] = None
    json_path: Annotated[Path | None, Option(None, "--json", help="Write the results here.")] = None

    @property
    def targets(self) -> dict[str, str | None]:
        """The address of each target; None if it has to be started: both without an address."""
        every = {"triton": self.server, "manager": self.manager}
        return {name: address for name, address in every.items() if address} or every


def perf_analyzer(settings: Settings, context: typer.Context) -> None:
    """Measure with NVIDIA's perf_analyzer: texts of exact length, against Triton and through the manager.

    Without --server and --manager both are started; what follows `--` are options for them, such as --replicas 2.
    """
    with one_line_errors():
        from tritonembed_manager.tune.loads import WordTexts
        from tritonembed_perf.loadgen.requests import parse_loads
        from tritonembed_perf.loadgen.target import check_shapes, read_tokenizer
        from tritonembed_perf.perf_analyzer.binary import find_program

        loads = parse_loads(settings.loads)
        check_output("--json", settings.json_path)
        files, tokenizer = read_tokenizer(settings.model)
        words = WordTexts(tokenizer)
        # All targets first: a fault of the second would otherwise be found after an hour on the first.
        for address in settings.targets.values():
            check_shapes([(f"--loads {load}", load.tokens, load.sentences) for load in loads], files, words, address)
        program = find_program(settings.program)
        environment = describe_environment(typed_command())
        print(machine_line(environment["machine"]))
        rows: list[dict[str, Any]] = []
        interrupted = False
        try:
            for target, address in settings.targets.items():
                with _started(target, address, settings.model, context.args) as running:
                    for load in loads:
                        rows.append(_measure(program, running, target, load, words, settings.seconds))
        except KeyboardInterrupt:
            interrupted = True
        finally:
            # What was measured before a failure is worth showing.
            if rows:
                _show(rows)
                write_report(settings.json_path, {**environment, "interrupted": interrupted, "rows": rows})
        if interrupted:
            end_interrupted()


@contextmanager
def _started(target: str, address: str | None, model: str, arguments: Sequence[str]) -> Iterator[str]:
    """Where the target listens; it is started if no address was given. Raises UsageError."""
    from tritonembed_perf.server import ServerEndedError, running_manager, running_server

    if address is not None:
        yield address
        return
    start: Any = running_server if target == "triton" else running_manager
    try:
        with start(model, arguments) as running:
            yield running.target
    except ServerEndedError as error:
        raise UsageError(f"the {target} does not start: {error}") from None


def _measure(
    program: "Program", server: str, target: str, load: "LoadShape", words: "WordTexts", seconds: float
) -> dict[str, Any]:
    """The row of one load on one target; the command line is printed. Raises BenchError with its own message."""
    with tempfile.TemporaryDirectory() as folder:
        texts, export = Path(folder) / "texts.json", Path(folder) / "export.csv"
        write_input(texts, words, load)
        command = command_line(program.path, server, texts, load, seconds)
        print(shlex.join(Path(word).name if word.startswith("/") else word for word in command), flush=True)
        limit = PATIENCE_S + 4 * WINDOWS * seconds
        try:
            done = subprocess.run(
                [*command, "-f", str(export), "--verbose-csv"],
                env=os.environ | program.environment,
                capture_output=True,
                text=True,
                timeout=limit,
            )
        except subprocess.TimeoutExpired:
            raise BenchError(f"perf_analyzer did not end within {limit:.0f} s") from None
        if done.returncode or not export.exists():
            errors, others = (list(filter(str.strip, text.splitlines())) for text in (done.stderr, done.stdout))
            last = (errors or others or [f"exit code {done.returncode} without a word"])[-1]
            reason = next((line for line in errors + others if line.lower().startswith(("error", "failed"))), last)
            raise BenchError(f"perf_analyzer, {target}, {load}: {reason.strip()}")
        return {"target": target, "load": str(load), **read_export(export.read_text(), load)}


def write_input(path: Path, words: "WordTexts", load: "LoadShape") -> None:
    """perf_analyzer's input JSON: a sentence per entry; a request takes as many as its batch size."""
    texts = words.of_lengths([load.tokens] * TEXTS_PREPARED * load.sentences, random.Random(load.tokens))
    path.write_text(json.dumps({"data": [{"text": [text]} for text in texts]}))


def command_line(program: Path, server: str, texts: Path, load: "LoadShape", seconds: float) -> list[str]:
    """Without the path of the export, which the caller adds."""
    command = [str(program), "-m", "embedding", "-i", "grpc", "-u", server, "-b", str(load.sentences)]
    command += ["--input-data", str(texts), "-p", str(round(seconds * 1000)), "-s", str(ANY_SPREAD)]
    command += ["-r", str(WINDOWS), "--concurrency-range", str(load.at_once)]
    return [*command, "--async"] if load.at_once >= ASYNC_FROM else command


def read_export(text: str, load: "LoadShape") -> dict[str, float]:
    """The one line of a CSV that perf_analyzer wrote with --verbose-csv: its inferences are sentences."""
    row = next(csv.DictReader(text.splitlines()))
    sentences = float(row["Inferences/Second"])
    return {
        "requests_per_second": sentences / load.sentences,
        "tokens_per_second": sentences * load.tokens,
        **{f"{name}_ms": float(row[f"{name} latency"]) / 1e3 for name in LATENCIES},
        "queue_ms": float(row["Server Queue"]) / 1e3,
        "compute_ms": sum(float(row[column]) for column in COMPUTE) / 1e3,
    }


def _show(rows: Sequence[dict[str, Any]]) -> None:
    """As a table on standard output, the targets of a load under each other."""
    loads = list(dict.fromkeys(row["load"] for row in rows))
    print_table(
        ["load", "target", "requests/s", "tokens/s", *(f"{name}, ms" for name in LATENCIES)],
        [
            [
                row["load"],
                row["target"],
                f"{row['requests_per_second']:,.1f}",
                f"{row['tokens_per_second']:,.0f}",
                *(f"{row[f'{name}_ms']:,.2f}" for name in LATENCIES),
            ]
            for row in sorted(rows, key=lambda row: loads.index(row["load"]))
        ],
        left=(0, 1),
    )
