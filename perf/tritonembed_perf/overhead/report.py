"""The stages of each load as a table, as bars of letters, and as a chart."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tritonembed_perf.overhead.stages import STAGES
from tritonembed_perf.run.environment import machine_line

BAR_WIDTH = 40


def show(report: dict[str, Any]) -> None:
    """On standard output."""
    rows = report["rows"]
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(80, 24 + 20 * len(rows)))
    print(machine_line(report["machine"]))
    print(f"mean milliseconds of a request, and its share, from {_source(report)}")
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


def plot(path: Path, report: dict[str, Any]) -> None:
    """A stacked bar a load; `path` with .png and with .svg is written."""
    from tritonembed_perf.plots import stacked_bars

    rows = report["rows"]
    used = [stage for stage in STAGES if any(row["milliseconds"][stage] for row in rows)]
    stacked_bars(
        path,
        "Where a request's time goes (tokens x sentences @ requests at once)",
        [row["load"] for row in rows],
        {stage: [row["milliseconds"][stage] for row in rows] for stage in used},
        f"% of a request's time, from {_source(report)}",
        [f"{sum(row['milliseconds'].values()):,.2f} ms" for row in rows],
    )


def _source(report: dict[str, Any]) -> str:
    return f"Triton's {report['source']} and the engine's metrics"
