"""The cost and the latency of autoscalers, simulated request by request; no server is started.

    python -m tritonembed_perf.scripts.autoscale [--scales 1,10,100,1000] [--json REPORT] [--chart FILE]

Requests are of 1,024 texts of 512 tokens, which a server with one H200 computes in 0.205 s (h200-compare). They come at
random moments, at a rate that rises fourfold and falls again within an hour (`wave`), or that has bursts: 2.5 times the
rate, for a minute on average (`bursts`).
"""

from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from typer import Option

from tritonembed_perf.autoscaling import (
    Behavior,
    Bursts,
    LoadRule,
    QueueTime,
    Rate,
    Rule,
    Scaler,
    Use,
    Wave,
    arrivals,
    simulate,
)
from tritonembed_perf.options import run_script
from tritonembed_perf.reports import INK, chart

SERVICE_S = 1024 * 512 / 2_556_000
"""Seconds for a request of 1,024 x 512 tokens at 2,556 K tokens/s (perf/results/h200-compare)."""
PEAK = 0.7
"""The share of time in which `scale` servers compute at the highest rate."""
LATE_S = 10.0
SEEN_S = 0.09
"""The longest queue time that Triton reports behind a manager, which gives a server little work at a time. Measured by
hand: the mean per inference while requests took 34 s (8 callers of 64 x 100 tokens, two CPU cores)."""
SEED = 1

RULES: dict[str, Rule | None] = {
    "all the time": None,
    "ours": LoadRule(),
    "ours, 60 % busy": LoadRule(use=0.6),
    "ours, 5 s of waiting": LoadRule(backlog=5.0),
    "ours, only what waits": LoadRule(use=None),
    "ours, only what comes": LoadRule(backlog=None),
    "ours, speed guessed 1.7 x too high": LoadRule(estimate=0.6),
    "only what comes, speed 1.7 x too high": LoadRule(backlog=None, estimate=0.6),
    "Triton's queue time, if all wait there": QueueTime(),
    "Triton's queue time, behind a manager": QueueTime(most=SEEN_S),
    "GPU use 70 %": Use(0.7),
    "GPU use 80 %": Use(0.8),
}
CHARTED = ("ours", "ours, only what waits", "Triton's queue time, if all wait there", "GPU use 80 %")


@dataclass(frozen=True)
class Simulation:
    """One simulation. scale: servers that the highest rate keeps PEAK busy."""

    scale: int
    pattern: str
    rule: str
    seconds: float = 3600.0
    start_up: float = 60.0
    seed: int = SEED


def run(case: Simulation) -> dict[str, Any]:
    """The figures of one simulation."""
    shape: Rate = Wave(case.seconds) if case.pattern == "wave" else Bursts(case.seed, case.seconds)
    times = arrivals(shape, case.scale * PEAK / SERVICE_S, case.seconds, case.seed)
    services = np.full(len(times), SERVICE_S)
    rule = RULES[case.rule]
    first = case.scale if rule is None else max(1, ceil(case.scale * float(shape(np.zeros(1))[0])))
    scaler = None if rule is None else Scaler(rule, Behavior(most=4 * case.scale))
    found = simulate(times, services, first, case.seconds, scaler, case.start_up)
    work = float(services.sum())
    return {
        "servers": case.scale,
        "pattern": case.pattern,
        "rule": case.rule,
        "requests": len(times),
        "p50_s": round(found.percentile(50), 2),
        "p99_s": round(found.percentile(99), 2),
        "late": round(float(np.mean(found.latencies > LATE_S)), 4),
        "server_hours": round(found.server_seconds / 3600, 2),
        "cost": round(found.server_seconds / work, 2),
        "most_servers": max(one.ordered for one in found.seen),
    }


def autoscale(
    scales: Annotated[str, Option(help="Servers that the highest rate keeps 70 % busy.")] = "1,10,100,1000",
    minutes: Annotated[float, Option(min=1)] = 60,
    start_up: Annotated[float, Option(min=0, help="Seconds from the order of a server to its first request.")] = 60,
    chart_path: Annotated[Path | None, Option("--chart", help="Draw p99 and cost, as FILE.png and FILE.svg.")] = None,
) -> dict[str, Any]:
    """p99 and cost of autoscaling rules."""
    rows = [
        run(Simulation(scale, pattern, rule, 60 * minutes, start_up))
        for scale in map(int, scales.split(","))
        for pattern in ("wave", "bursts")
        for rule in RULES
    ]
    for row in rows:
        print(
            f"{row['servers']:>5} {row['pattern']:<7}{row['rule']:<40} p99 {row['p99_s']:>10,.2f} s   "
            f"late {row['late']:>7.2%}   cost {row['cost']:.2f}"
        )
    if chart_path is not None:
        _draw(chart_path, rows)
    settings = {"service_s": SERVICE_S, "peak": PEAK, "minutes": minutes, "start_up_s": start_up, "seed": SEED}
    return {"settings": settings, "late_s": LATE_S, "rows": rows}


def _draw(path: Path, rows: list[dict[str, Any]]) -> None:
    """p99 by cost: a point per rule and scale, filled for bursts."""
    with chart(path, "p99 and cost of autoscaling rules (the lower left is best)", width=9.0, height=4.8) as axes:
        for number, rule in enumerate(CHARTED):
            colour = f"C{number}"
            for pattern, face in (("bursts", colour), ("wave", "none")):
                own = [row for row in rows if row["rule"] == rule and row["pattern"] == pattern]
                axes.plot(
                    [row["cost"] for row in own],
                    [row["p99_s"] for row in own],
                    linestyle="",
                    marker="o",
                    color=colour,
                    markerfacecolor=face,
                    label=f"{rule}: {pattern}",
                )
                for row in own:
                    where = (row["cost"], row["p99_s"])
                    axes.annotate(
                        f"{row['servers']:,}", where, (5, 3), textcoords="offset points", fontsize=8, color=INK
                    )
        axes.set(xlabel="server hours per hour of work", ylabel="p99, seconds", yscale="log")
        axes.grid(alpha=0.25)


if __name__ == "__main__":
    run_script("autoscale", __doc__, autoscale)
