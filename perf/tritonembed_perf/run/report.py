"""A run's results: a table for people, JSON for machines."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tritonembed_perf.reports import print_table
from tritonembed_perf.run.measure import Row
from tritonembed_perf.run.settings import Settings

PERCENTILES = {"p50": 50, "p90": 90, "p99": 99, "max": 100}


def show_table(rows: Sequence[Row], settings: Settings) -> None:
    """On standard output: a column per batch size."""
    if not rows:
        print("nothing was measured")
        return
    columns = [_column(row) for row in rows]
    names = dict.fromkeys(name for column in columns for name in column)
    print(_title(settings))
    print_table(
        ["sentences a request", *(f"{row.batch_size:,}" for row in rows)],
        [[name, *(column.get(name, "–") for column in columns)] for name in names],
    )
    for note in _notes(rows):
        print(note)


def _title(settings: Settings) -> str:
    load, processes = settings.load, settings.client_processes
    texts = f"{settings.distribution} length {settings.prompt_length}"
    if settings.dataset is not None:
        texts = f"texts of {settings.dataset.name}"
    how = f"{load.rate:g} requests/s, open loop" if load.rate is not None else f"{load.concurrency} at once"
    amount = f"{load.duration:g} s" if load.duration is not None else f"{load.requests:,} requests"
    clients = "1 client process" if processes == 1 else f"{processes} client processes"
    return f"{settings.protocol}, {texts}, {how}, {amount}, {clients}"


def _column(row: Row) -> dict[str, str]:
    """The row's figures by their names."""
    outcome, part = row.outcome, row.outcome.part
    column = {
        "requests answered": f"{outcome.requests:,}",
        "seconds": f"{outcome.seconds:.2f}",
        "requests/s": f"{outcome.requests_per_second:,.1f}",
        "sentences/s": f"{outcome.requests_per_second * row.batch_size:,.0f}",
        "tokens/s": f"{outcome.tokens_per_second:,.0f}",
    }
    for name, percent in PERCENTILES.items():
        column[f"latency {name}, ms"] = f"{outcome.latency_ms(percent):,.2f}" if outcome.requests else "–"
    if outcome.late_p99_ms >= 1:
        column["sent late p99, ms"] = f"{outcome.late_p99_ms:.1f}"
    column["errors"] = f"{sum(part.errors.values()):,}"
    column |= {f"errors: {kind}": f"{count:,}" for kind, count in part.errors.items()}
    column["vectors compared / wrong"] = f"{part.compared * min(row.batch_size, 64):,} / {part.wrong:,}"
    column["client CPU, s"] = f"{outcome.client_cpu_seconds:.2f}"
    if row.server_cpu_seconds is not None:
        column["server CPU, s"] = f"{row.server_cpu_seconds:.2f}"
    for number, gpu in enumerate(row.gpus):
        column[f"GPU {number} busy, %"] = f"{gpu.busy_percent:,.0f}"
        column[f"GPU {number} memory, MiB"] = f"{gpu.memory_mib:,.0f}"
    return column


def _notes(rows: Sequence[Row]) -> list[str]:
    """Sentences below the table: errors, wrong answers, a saturated client."""
    lines = []
    for row in rows:
        part, batch = row.outcome.part, f"batch {row.batch_size}"
        lines += [f"{batch}: {kind}: {message}" for kind, message in part.messages.items()]
        lines += [f"{batch}: wrong answer: {fault}" for fault in dict.fromkeys(part.faults)]
        if row.outcome.is_client_saturated:
            lines.append(
                f"{batch}: the client's own CPU is saturated (a thread of it ran, or waited for a core, "
                f"{row.outcome.busiest_client:.0%} of the time): the server may do more; try more --processes"
            )
    return lines


def as_json(row: Row, settings: Settings) -> dict[str, Any]:
    """One row."""
    outcome, part = row.outcome, row.outcome.part
    return {
        "batch_size": row.batch_size,
        "distinct_requests": row.distinct_requests,
        "requests": outcome.requests,
        "seconds": outcome.seconds,
        "requests_per_second": outcome.requests_per_second,
        "sentences_per_second": outcome.requests_per_second * row.batch_size,
        "tokens": part.tokens,
        "tokens_per_second": outcome.tokens_per_second,
        "offered_requests_per_second": settings.rate,
        "latency_ms": {
            name: outcome.latency_ms(percent) if outcome.requests else None for name, percent in PERCENTILES.items()
        },
        "sent_late_p99_ms": outcome.late_p99_ms,
        "errors": part.errors,
        "error_messages": part.messages,
        "answers_compared": part.compared,
        "wrong_answers": part.wrong,
        "faults": part.faults,
        "client_cpu_seconds": outcome.client_cpu_seconds,
        "client_busiest_thread": outcome.busiest_client,
        "client_saturated": outcome.is_client_saturated,
        "server_cpu_seconds": row.server_cpu_seconds,
        "gpus": [asdict(gpu) for gpu in row.gpus],
    }
