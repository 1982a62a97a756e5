"""A comparison's results as charts. What was not measured has none."""

from collections.abc import Sequence
from pathlib import Path

from tritonembed_perf.compare.results import Result
from tritonembed_perf.compare.sample import Sample, median
from tritonembed_perf.compare.trials import Trial

BARS, LATENCIES, REPLICAS = "tokens-by-load", "p99-by-rate", "tokens-by-replicas"


def plot(folder: Path, trials: Sequence[Trial], results: Sequence[Result]) -> list[str]:
    """Grouped bars of tokens/s; p99 against the offered rate; tokens/s against replicas. Returns what was drawn.

    Raises ImportError where matplotlib is missing.
    """
    return [
        name
        for name, draw in ((BARS, _bars), (LATENCIES, _latencies), (REPLICAS, _replicas))
        if draw(folder / name, trials, results)
    ]


def _bars(path: Path, trials: Sequence[Trial], results: Sequence[Result]) -> bool:
    from tritonembed_perf.plots import grouped_bars

    closed = [trial for trial in trials if trial.rate is None]
    series = {
        result.system: [_tokens(result.of(trial)) for trial in closed]
        for result in results
        if any(result.of(trial) for trial in closed)
    }
    if series:
        title = "tokens/s by load (tokens x sentences a request @ requests at once)"
        grouped_bars(path, title, [trial.name for trial in closed], series)
    return bool(series)


def _latencies(path: Path, trials: Sequence[Trial], results: Sequence[Result]) -> bool:
    from tritonembed_perf.plots import lines

    offered = sorted((trial for trial in trials if trial.rate is not None), key=lambda trial: trial.rate or 0.0)
    curves = {
        result.system: [(trial.rate or 0.0, found.p99_ms) for trial in offered if (found := result.of(trial))]
        for result in results
    }
    curves = {name: points for name, points in curves.items() if points}
    if curves:
        title = f"99th percentile of latency against offered rate, {offered[0].tokens} x {offered[0].sentences}"
        lines(path, title, curves, ("requests/s offered", "ms"), logarithmic=True)
    return bool(curves)


def _replicas(path: Path, trials: Sequence[Trial], results: Sequence[Result]) -> bool:
    from tritonembed_perf.plots import lines

    counts = {
        result.system: sorted((float(n), median(many).tokens_per_second) for n, many in result.by_replicas.items())
        for result in results
        if result.by_replicas
    }
    if counts:
        lines(path, f"tokens/s against replicas, {trials[0].name}", counts, ("replicas", "tokens/s"))
    return bool(counts)


def _tokens(sample: Sample | None) -> float | None:
    return None if sample is None else sample.tokens_per_second
