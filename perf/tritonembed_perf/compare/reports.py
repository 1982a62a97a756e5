"""The report of one run or of several: JSON for machines, Markdown and charts for people."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tritonembed_perf.compare.results import Result, Sample, median, merge
from tritonembed_perf.compare.tables import markdown, show
from tritonembed_perf.compare.trials import Trial
from tritonembed_perf.failures import UsageError
from tritonembed_perf.reports import machine_line, write_report

JSON, MARKDOWN = "compare.json", "compare.md"
BARS, LATENCIES, REPLICAS = "tokens-by-load", "p99-by-rate", "tokens-by-replicas"


def make_report(
    environment: dict[str, Any], model: str, dtype: str, device: str, finished: bool, trials: Sequence[Trial]
) -> dict[str, Any]:
    """All but the systems. environment: as `describe_environment` returns it."""
    run = {**environment, "machine_line": machine_line(environment["machine"]), "interrupted": not finished}
    names = [trial.name for trial in trials]
    return {"model": model, "dtype": dtype, "device": device, "trials": names, "runs": [run]}


def read_report(option: str, path: Path) -> tuple[dict[str, Any], list[Result]]:
    """Of what `publish` wrote. option: that named it. Raises UsageError."""
    try:
        report = json.loads(path.read_text())
        results = [Result.from_json(entry) for entry in report.pop("systems")]
        for key in ("model", "dtype", "device", "runs"):
            report[key]
        [Trial.parse(name) for name in report["trials"]]
    except OSError as error:
        raise UsageError(f"{option}: {path.name}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"{option}: {path.name} is no report of `tritonembed-bench compare`") from None
    return report, results


def merge_reports(read: Sequence[tuple[dict[str, Any], list[Result]]]) -> tuple[dict[str, Any], list[Result]]:
    """One report. Raises UsageError if their models, precisions or machines differ."""
    first = read[0][0]
    for report, _ in read[1:]:
        for key in ("model", "dtype", "device"):
            if report[key] != first[key]:
                raise UsageError(f"--merge: {key} is {first[key]} in one file and {report[key]} in another")
    runs = [run for report, _ in read for run in report["runs"]]
    machines = {run["machine_line"] for run in runs}
    if len(machines) > 1:
        raise UsageError(f"--merge: these are different machines: {'; '.join(sorted(machines))}")
    trials = list(dict.fromkeys(name for report, _ in read for name in report["trials"]))
    return {**first, "trials": trials, "runs": runs}, merge([results for _, results in read])


def publish(report: dict[str, Any], results: Sequence[Result], folder: Path | None) -> None:
    """Show the tables; write everything to the folder, if there is one."""
    trials = [Trial.parse(name) for name in report["trials"]]
    show(trials, results)
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_report(folder / JSON, {**report, "systems": [asdict(result) for result in results]})
    (folder / MARKDOWN).write_text(markdown(report, trials, results))
    try:
        plot(folder, trials, results)
    except ImportError as error:
        # The figures are worth more; another machine can draw them with --merge.
        print(f"no charts: {error}")


def plot(folder: Path, trials: Sequence[Trial], results: Sequence[Result]) -> list[str]:
    """Grouped bars of tokens/s; p99 against the offered rate; tokens/s against replicas. Returns the charts' names.

    What was not measured has no chart. Raises ImportError if matplotlib is missing.
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
