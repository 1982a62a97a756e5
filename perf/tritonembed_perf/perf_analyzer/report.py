"""The points of a scenario as a table and as charts."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tritonembed_perf.perf_analyzer.runs import Point
from tritonembed_perf.perf_analyzer.scenarios import Scenario

UNITS = {"concurrency": "requests at once", "request_rate": "requests/s offered"}


def show(scenario: Scenario, points: Sequence[Point]) -> None:
    """On standard output."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=110)
    print(f"{scenario.name}: {scenario.description}")
    table = Table()
    table.add_column("target")
    table.add_column("tokens x sentences")
    for name in (UNITS[scenario.load], "requests/s", "tokens/s", "p50 ms", "p90 ms", "p99 ms"):
        table.add_column(name, justify="right")
    for point in points:
        figures = (f"{point.requests_per_second:,.1f}", f"{point.tokens_per_second:,.0f}")
        latencies = (f"{value:,.2f}" for value in (point.p50_ms, point.p90_ms, point.p99_ms))
        table.add_row(point.target, point.shape.name, f"{point.value:,}", *figures, *latencies)
    console.print(table)


def plot(folder: Path, scenario: Scenario, points: Sequence[Point]) -> None:
    """Two charts: tokens/s and the 99th percentile against the load."""
    from tritonembed_perf.plots import lines

    unit = UNITS[scenario.load]
    series: dict[str, list[Point]] = {}
    for point in points:
        series.setdefault(f"{point.target} {point.shape.name}", []).append(point)
    lines(
        folder / f"{scenario.name}-tokens",
        f"perf_analyzer: tokens/s ({scenario.description})",
        {name: [(p.value, p.tokens_per_second) for p in line] for name, line in series.items()},
        (unit, "tokens/s"),
    )
    lines(
        folder / f"{scenario.name}-p99",
        f"perf_analyzer: 99th percentile of latency ({scenario.description})",
        {name: [(p.value, p.p99_ms) for p in line] for name, line in series.items()},
        (unit, "ms"),
        logarithmic=True,
    )


def as_json(scenario: Scenario, points: Sequence[Point]) -> dict[str, Any]:
    """One scenario."""
    rows = [
        {**asdict(point), "shape": point.shape.name, "tokens_per_second": point.tokens_per_second} for point in points
    ]
    return {"scenario": asdict(scenario), "points": rows}
