"""A run's results: a table for people, JSON for machines."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tritonembed_perf.run.histogram import latency_histogram
from tritonembed_perf.run.measure import Row
from tritonembed_perf.run.settings import Settings

NARROWEST = 80
COLUMN_WIDTH = 16


def show_table(rows: Sequence[Row], settings: Settings) -> None:
    """On standard output: a column a batch size."""
    if not rows:
        print("nothing was measured")
        return
    console = Console()
    width = 30 + COLUMN_WIDTH * len(rows)
    if width > console.width and not console.is_terminal:
        console = Console(width=width)
    table = Table()
    table.add_column("sentences a request")
    for row in rows:
        table.add_column(f"{row.batch_size:,}", justify="right")
    for name, text in _lines(rows):
        table.add_row(name, *(text(row) for row in rows))
    console.print(title(settings), highlight=False, soft_wrap=True)
    console.print(table)
    for note in notes(rows):
        console.print(note, highlight=False)


def title(settings: Settings) -> str:
    """What the load was."""
    texts = (
        f"texts of {settings.dataset.name}"
        if settings.dataset is not None
        else f"{settings.distribution} length {settings.prompt_length}"
    )
    how = f"{settings.rate:g} requests/s, open loop" if settings.rate is not None else f"{settings.concurrency} at once"
    amount = f"{settings.duration:g} s" if settings.duration is not None else f"{settings.requests:,} requests"
    processes = "1 client process" if settings.processes == 1 else f"{settings.processes} client processes"
    return f"{settings.protocol}, {texts}, {how}, {amount}, {processes}"


def _lines(rows: Sequence[Row]) -> list[tuple[str, Callable[[Row], str]]]:
    lines: list[tuple[str, Callable[[Row], str]]] = [
        ("requests answered", lambda row: f"{row.outcome.requests:,}"),
        ("seconds", lambda row: f"{row.outcome.seconds:.2f}"),
        ("requests/s", lambda row: f"{row.outcome.requests_per_second:,.1f}"),
        ("sentences/s", lambda row: f"{row.outcome.requests_per_second * row.batch_size:,.0f}"),
        ("tokens/s", lambda row: f"{row.outcome.tokens_per_second:,.0f}"),
    ]
    for name, percent in (("p50", 50), ("p90", 90), ("p99", 99), ("max", 100)):
        lines.append((f"latency {name}, ms", lambda row, percent=percent: _milliseconds(row, percent)))  # type: ignore[misc]
    if any(len(row.outcome.part.late) and row.outcome.late_p99_ms >= 1 for row in rows):
        lines.append(("sent late p99, ms", lambda row: f"{row.outcome.late_p99_ms:.1f}"))
    kinds = sorted({kind for row in rows for kind in row.outcome.part.errors})
    lines += [(f"errors: {kind}", lambda row, kind=kind: f"{row.outcome.part.errors.get(kind, 0):,}") for kind in kinds]  # type: ignore[misc]
    if not kinds:
        lines.append(("errors", lambda _: "0"))
    lines.append(("vectors compared / wrong", lambda row: f"{_compared(row):,} / {row.outcome.part.wrong:,}"))
    lines.append(("client CPU, s", lambda row: f"{row.outcome.client_cpu_seconds:.2f}"))
    if any(row.server_cpu_seconds is not None for row in rows):
        lines.append(("server CPU, s", lambda row: _or_dash(row.server_cpu_seconds, ".2f")))
    for number in range(max((len(row.gpus) for row in rows), default=0)):
        lines.append((f"GPU {number} busy, %", lambda row, n=number: _gpu(row, n, "busy_percent")))  # type: ignore[misc]
        lines.append((f"GPU {number} memory, MiB", lambda row, n=number: _gpu(row, n, "memory_mib")))  # type: ignore[misc]
    return lines


def notes(rows: Sequence[Row]) -> list[str]:
    """What a reader of the table must know, in sentences."""
    said = []
    for row in rows:
        part = row.outcome.part
        said += [f"batch {row.batch_size}: {kind}: {message}" for kind, message in part.messages.items()]
        said += [f"batch {row.batch_size}: wrong answer: {fault}" for fault in dict.fromkeys(part.faults)]
        if row.outcome.is_client_saturated:
            said.append(
                f"batch {row.batch_size}: the client's own CPU is saturated (a thread of it ran, or waited for a core, "
                f"{row.outcome.busiest_client:.0%} of the time): the server may do more; try more --processes"
            )
    return said


def as_json(row: Row, settings: Settings) -> dict[str, Any]:
    """One row."""
    outcome = row.outcome
    return {
        "batch_size": row.batch_size,
        "distinct_requests": row.distinct_requests,
        "requests": outcome.requests,
        "seconds": outcome.seconds,
        "requests_per_second": outcome.requests_per_second,
        "sentences_per_second": outcome.requests_per_second * row.batch_size,
        "tokens": outcome.part.tokens,
        "tokens_per_second": outcome.tokens_per_second,
        "offered_requests_per_second": settings.rate,
        "latency_ms": {
            name: outcome.latency_ms(percent) if outcome.requests else None
            for name, percent in (("p50", 50), ("p90", 90), ("p99", 99), ("max", 100))
        },
        "latency_histogram": latency_histogram(outcome.part.latencies),
        "sent_late_p99_ms": outcome.late_p99_ms,
        "errors": outcome.part.errors,
        "error_messages": outcome.part.messages,
        "answers_compared": outcome.part.compared,
        "wrong_answers": outcome.part.wrong,
        "faults": outcome.part.faults,
        "client_cpu_seconds": outcome.client_cpu_seconds,
        "client_busiest_thread": outcome.busiest_client,
        "client_saturated": outcome.is_client_saturated,
        "server_cpu_seconds": row.server_cpu_seconds,
        "gpus": [asdict(gpu) for gpu in row.gpus],
    }


def settings_as_json(settings: Settings) -> dict[str, Any]:
    """Every option, also those that were left to their defaults; of files their names without folders."""
    values = asdict(settings)
    for name in ("model", "tokenizer", "dataset"):
        if values[name] is not None:
            values[name] = Path(str(values[name])).name if Path(str(values[name])).exists() else str(values[name])
    return values


def _compared(row: Row) -> int:
    return row.outcome.part.compared * min(row.batch_size, 64)


def _milliseconds(row: Row, percent: float) -> str:
    return f"{row.outcome.latency_ms(percent):,.2f}" if row.outcome.requests else "–"


def _or_dash(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _gpu(row: Row, number: int, field: str) -> str:
    return f"{getattr(row.gpus[number], field):,.0f}" if number < len(row.gpus) else "–"
