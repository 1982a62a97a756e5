"""`tritonembed-bench run`: texts are made and encoded, then sent while the clock runs; a row per batch size."""

import random
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from tritonembed.cli.progress import Bar
from tritonembed_manager.tune.loadgen.clients import Interrupt, Watcher, run_clients
from tritonembed_manager.tune.loadgen.load import LoadResult, Work
from tritonembed_manager.tune.loads import WordTexts, count_tokens
from tritonembed_perf.failures import BenchError, UsageError, end_interrupted
from tritonembed_perf.loadgen.checks import (
    PERCENTILES,
    SENTENCES,
    AnswerCheck,
    embed_with_transformers,
    figures,
    make_references,
    make_work,
)
from tritonembed_perf.loadgen.requests import (
    PooledRequest,
    draw_lengths,
    make_requests,
    read_dataset,
    requests_to_prepare,
)
from tritonembed_perf.loadgen.target import Target, check_length, embed_alone, find_target, refuse_other_dimensions
from tritonembed_perf.reports import begin_report, check_output, print_table, write_report
from tritonembed_perf.server_use import GpuMeter, GpuUse, ServerProcesses
from tritonembed_perf.settings import RunSettings

FIGURES = (
    ("requests answered", "requests", "{:,}"),
    ("seconds", "seconds", "{:.2f}"),
    ("requests/s", "requests_per_second", "{:,.1f}"),
    ("sentences/s", "sentences_per_second", "{:,.0f}"),
    ("tokens/s", "tokens_per_second", "{:,.0f}"),
    *((f"latency {name}, ms", f"{name}_ms", "{:,.2f}") for name in PERCENTILES),
    ("sent late p99, ms", "sent_late_p99_ms", "{:.1f}"),
    ("client CPU, s", "client_cpu_seconds", "{:.2f}"),
    ("server CPU, s", "server_cpu_seconds", "{:.2f}"),
)
"""The lines of the table: a line's name, its key in a row of the report, and its format."""


def measure_server(settings: RunSettings) -> None:
    """Measure each batch size, show the table, write the report. Raises UsageError, BenchError, KeyboardInterrupt."""
    check_output("--json", settings.json_path)
    target = find_target(settings)
    texts = Texts(settings, target)
    served = target.served
    for size in settings.sizes:
        if served.max_batch_size and size > served.max_batch_size:
            raise UsageError(f"--batch-sizes {size}: the server takes {served.max_batch_size} a request")
    report = begin_report()
    print(f"{settings.address}: {served.model}, {served.description}")
    processes = ServerProcesses.find(settings.address)
    rows: list[dict[str, Any]] = []
    interrupt = Interrupt()
    try:
        for size in settings.sizes:
            work = prepare(settings, target, texts.requests(size))
            with ServerWatcher(settings, size, processes) as watcher, interrupt.catching():
                outcome = run_clients(work, settings.load, settings.client_processes, watcher, interrupt)
            # A batch size whose warm-up was interrupted has no figures.
            if outcome.is_telling or not interrupt.happened:
                rows.append(make_row(settings, size, len(work.payloads), outcome, watcher))
            if interrupt.happened:
                break
    except KeyboardInterrupt:
        interrupt.happened = True
    _show(rows, settings)
    report["server"] = {"model": served.model, "description": served.description}
    report |= {"interrupted": interrupt.happened, "rows": rows}
    write_report(settings.json_path, report)
    if wrong := sum(row["wrong"] for row in rows):
        raise BenchError(f"{wrong} answers were wrong")
    if interrupt.happened:
        end_interrupted()
    for row in rows:
        if not row["requests"]:
            raise BenchError(f"no request of {row['batch_size']} sentences was answered")


class Texts:
    """The source of texts for every batch size."""

    def __init__(self, settings: RunSettings, target: Target) -> None:
        self._settings = settings
        longest = target.files.max_length
        if settings.dataset is not None:
            self._dataset = read_dataset(settings.dataset)
            # The server cuts what is longer than the model takes.
            self._dataset_tokens = [min(n, longest) for n in count_tokens(target.tokenizer, self._dataset)]
            self._mean_length = float(np.mean(self._dataset_tokens))
            return
        self._words = WordTexts(target.tokenizer)
        # An impossible length is found before anything else is done.
        check_length(f"--prompt-length {settings.prompt_length}", settings.prompt_length, self._words, longest)
        self._mean_length = settings.prompt_length / (1 if settings.distribution == "fixed" else 2)

    def requests(self, batch_size: int) -> list[PooledRequest]:
        """Different requests, to be sent in turn."""
        settings = self._settings
        count = requests_to_prepare(batch_size, self._mean_length, settings.load.requests)
        if settings.dataset is not None:
            repeats = -(-batch_size // len(self._dataset))
            return make_requests(self._dataset * repeats, self._dataset_tokens * repeats, batch_size)[:count]
        longest, shortest = settings.prompt_length, self._words.shortest
        rng = np.random.default_rng(settings.seed)
        lengths = draw_lengths(settings.distribution, longest, shortest, count * batch_size, rng).tolist()
        return make_requests(self._words.of_lengths(lengths, random.Random(settings.seed)), lengths, batch_size)


def prepare(settings: RunSettings, target: Target, requests: Sequence[PooledRequest]) -> Work:
    """Encode the requests and find their right answers. Raises UsageError if the server refuses them."""
    files = target.files
    if settings.reference == "model":
        references = make_references(requests, lambda texts: embed_with_transformers(files, texts))
    else:
        references = make_references(requests, lambda texts: embed_alone(target.protocol, texts, settings.timeout))
    refuse_other_dimensions(next(iter(references.values())).vectors.shape[1], files)
    # A prompt of the model's own would be counted by the server and not here.
    comparable = settings.dataset is None and not files.prompt_for(None)
    tokens = tuple(request.tokens for request in requests) if comparable else None
    check = AnswerCheck(files.dimensions, files.normalize, settings.min_cosine, references, tokens)
    return make_work(target.protocol, requests, check)


class ServerWatcher(Bar, Watcher):
    """Measures the server's use while the clock runs. Draws how far and how fast it is, on a terminal only."""

    def __init__(self, settings: RunSettings, batch_size: int, processes: ServerProcesses | None) -> None:
        self._is_timed = settings.duration is not None
        super().__init__(
            f"batch {batch_size}",
            "{task.fields[figures]}",
            settings.duration or settings.requests,
            shown=sys.stderr.isatty(),
            transient=True,
            figures="warm-up",
        )
        self._processes, self._meter = processes, GpuMeter()
        self.cpu_seconds: float | None = None
        self.gpus: Sequence[GpuUse] = ()

    def begin(self) -> None:
        """As Watcher says."""
        if self._processes is not None:
            self.cpu_seconds = -self._processes.cpu_seconds()
        self._meter.start()

    def progress(self, done: int, failed: int, elapsed: float) -> None:
        """As Watcher says."""
        if elapsed:
            figures = f"{done:,} answers, {done / elapsed:,.0f} a second" + (f", {failed:,} failed" if failed else "")
            self.show(elapsed if self._is_timed else done + failed, figures=figures)

    def end(self) -> None:
        """As Watcher says."""
        if self._processes is not None and self.cpu_seconds is not None:
            self.cpu_seconds += self._processes.cpu_seconds()
        self.gpus = self._meter.stop()


def make_row(
    settings: RunSettings, batch_size: int, distinct: int, outcome: LoadResult, watcher: ServerWatcher
) -> dict[str, Any]:
    """The row of a batch size in the report. distinct: different requests."""
    return {
        "batch_size": batch_size,
        "distinct_requests": distinct,
        "requests": outcome.requests,
        "seconds": outcome.seconds,
        "sentences_per_second": outcome.requests_per_second * batch_size,
        "tokens": outcome.samples.tokens,
        **figures(outcome),
        "offered_requests_per_second": settings.rate,
        "sent_late_p99_ms": outcome.late_p99_ms,
        "compared": outcome.samples.compared,
        "client_busiest_thread": outcome.busiest_client,
        "server_cpu_seconds": watcher.cpu_seconds,
        "gpus": [asdict(gpu) for gpu in watcher.gpus],
    }


def _show(rows: Sequence[dict[str, Any]], settings: RunSettings) -> None:
    """Print a column per batch size, then errors, wrong answers and a saturated client in words."""
    if not rows:
        print("nothing was measured")
        return
    columns = [_column(row) for row in rows]
    names = dict.fromkeys(name for column in columns for name in column)
    print(_title(settings))
    print_table(
        ["sentences a request", *(f"{row['batch_size']:,}" for row in rows)],
        [[name, *(column.get(name, "–") for column in columns)] for name in names],
    )
    for row in rows:
        notes = list(row["faults"])
        if row["client_saturated"]:
            notes.append(
                f"the client's own CPU is saturated (a thread of it ran, or waited for a core, "
                f"{row['client_busiest_thread']:.0%} of the time): the server may do more; try more --processes"
            )
        for note in notes:
            print(f"batch {row['batch_size']}: {note}")


def _column(row: dict[str, Any]) -> dict[str, str]:
    """The row's figures by their names."""
    column = {name: form.format(row[key]) for name, key, form in FIGURES if row[key] is not None}
    column["errors"] = f"{sum(row['errors'].values()):,}"
    column |= {f"errors: {kind}": f"{count:,}" for kind, count in row["errors"].items()}
    column["vectors compared / wrong"] = f"{row['compared'] * min(row['batch_size'], SENTENCES):,} / {row['wrong']:,}"
    for number, gpu in enumerate(row["gpus"]):
        column[f"GPU {number} busy, %"] = f"{gpu['busy_percent']:,.0f}"
        column[f"GPU {number} memory, MiB"] = f"{gpu['memory_mib']:,.0f}"
    return column


def _title(settings: RunSettings) -> str:
    load, processes = settings.load, settings.client_processes
    texts = f"{settings.distribution} length {settings.prompt_length}"
    if settings.dataset is not None:
        texts = f"texts of {settings.dataset.name}"
    how = f"{load.rate:g} requests/s, open loop" if load.rate is not None else f"{load.concurrency} at once"
    amount = f"{load.duration:g} s" if load.duration is not None else f"{load.requests:,} requests"
    clients = "1 client process" if processes == 1 else f"{processes} client processes"
    return f"{settings.protocol}, {texts}, {how}, {amount}, {clients}"
