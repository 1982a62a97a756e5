"""The figures of each system, and the report of them: tables and charts for people, JSON for machines.

JSON is read again to make one report of several runs.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tritonembed_perf.failures import UsageError
from tritonembed_perf.reports import grouped_bars, lines, print_table, write_report

Sample = dict[str, Any]
"""What `figures` returns, for one window."""


@dataclass(frozen=True)
class Trial:
    """Requests of one shape: `concurrency` at once, or `rate` per second at random moments."""

    tokens: int
    sentences: int
    concurrency: int | None = None
    rate: float | None = None

    @staticmethod
    def parse(name: str) -> "Trial":
        """The inverse of `str`. Raises ValueError."""
        shape, _, rate = name.removesuffix("/s").partition(" at ")
        shape, _, concurrency = shape.partition("@")
        tokens, sentences = (int(part) for part in shape.split("x"))
        return Trial(tokens, sentences, int(concurrency) if concurrency else None, float(rate) if rate else None)

    def __str__(self) -> str:
        """50x64@4, or 50x1 at 20/s."""
        shape = f"{self.tokens}x{self.sentences}"
        return f"{shape}@{self.concurrency}" if self.rate is None else f"{shape} at {self.rate:g}/s"

    def rank(self, sample: Sample) -> tuple[bool, float]:
        """The sort key, best first: no failures or wrong answers, then tokens/s, or p99 at an offered rate."""
        unsound = bool(sample["errors"] or sample["wrong"]) or not sample["tokens_per_second"]
        return unsound, sample["p99_ms"] if self.rate is not None else -sample["tokens_per_second"]


@dataclass
class Result:
    """One system. samples: by its settings as they are typed, and by the trial, one per round.

    why_not: empty, or why it has no figures. troubles: what went wrong on the way.
    """

    system: str
    note: str = ""
    why_not: str = ""
    troubles: list[str] = field(default_factory=list)
    samples: dict[str, dict[str, list[Sample]]] = field(default_factory=dict)

    def best(self, trial: Trial) -> tuple[str, list[Sample]] | None:
        """The settings that were best for the trial, and all samples with them, the median first.

        Of an even number it is the worse of the two in the middle. Settings that had more rounds win.
        """
        found = []
        for config, of in self.samples.items():
            if samples := sorted(of.get(str(trial), ()), key=trial.rank):
                median = samples.pop(len(samples) // 2)
                found.append((config, [median, *samples]))
        return min(found, key=lambda entry: (-len(entry[1]), *trial.rank(entry[1][0])), default=None)

    def of(self, trial: Trial) -> Sample | None:
        """The median sample with the best settings."""
        best = self.best(trial)
        return best and best[1][0]

    def every_sample(self) -> Iterator[Sample]:
        """Every sample, with any settings."""
        return (sample for of in self.samples.values() for samples in of.values() for sample in samples)

    def add(self, other: "Result") -> None:
        """What another run found out about the same system: more rounds, more settings."""
        for config, of in other.samples.items():
            for name, samples in of.items():
                self.samples.setdefault(config, {}).setdefault(name, []).extend(samples)
        self.troubles = list(dict.fromkeys([*self.troubles, *other.troubles]))
        self.note = self.note or other.note
        if self.samples:
            self.why_not = ""


Report = tuple[dict[str, Any], list[Result]]
"""All but the systems, as JSON, and the systems."""


def read_report(path: Path) -> Report:
    """Reads a compare.json. Raises UsageError."""
    try:
        report = json.loads(path.read_text())
        results = [Result(**entry) for entry in report.pop("systems")]
        for trial in map(Trial.parse, report["trials"]):
            [result.of(trial) for result in results]
        assert {"model", "dtype", "device", "runs"} <= set(report)
    except OSError as error:
        raise UsageError(f"--merge: {path.name}: {error.strerror}") from None
    except (AssertionError, ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"--merge: {path.name} is no report of this version's `tritonembed-bench compare`") from None
    return report, results


def merge_reports(read: Sequence[Report]) -> Report:
    """One report, systems in the order in which they first come.

    Raises UsageError if their models, precisions or machines differ.
    """
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
    merged: dict[str, Result] = {}
    for result in (result for _, results in read for result in results):
        merged.setdefault(result.system, Result(result.system, result.note, result.why_not)).add(result)
    return {**first, "trials": trials, "runs": runs}, list(merged.values())


OURS = "tritonembed"
HEADER = ("system", "tokens/s", "least – most", "requests/s", "p50 ms", "p99 ms", f"{OURS} is", "failed / wrong")


def publish(report: Report, folder: Path | None) -> None:
    """Show the tables; write everything to the folder, if there is one."""
    head, results = report
    trials = [Trial.parse(name) for name in head["trials"]]
    for trial in trials:
        print_table(HEADER, rows_of(trial, results), left=(0, 2), title=str(trial))
    print("\n".join(remarks(trials, results)))
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_report(folder / "compare.json", {**head, "systems": [asdict(result) for result in results]})
    (folder / "compare.md").write_text(markdown(head, trials, results))
    try:
        plot(folder, trials, results)
    except ImportError as error:
        # The figures are worth more; another machine can draw them with --merge.
        print(f"no charts: {error}")


def rows_of(trial: Trial, results: Sequence[Result]) -> list[tuple[str, ...]]:
    """A row for each system, the fastest first, of an open loop the least p99; without figures the reason."""

    def rank(result: Result) -> float:
        sample = result.of(trial)
        return trial.rank(sample)[1] if sample else float("inf")

    ours = next((result.of(trial) for result in results if result.system == OURS), None)
    return [_row(result, trial, ours) for result in sorted(results, key=rank)]


def _row(result: Result, trial: Trial, ours: Sample | None) -> tuple[str, ...]:
    best = result.best(trial)
    if best is None:
        return (result.system, "–", result.why_not or "not measured", "", "", "", "", "")
    samples = best[1]
    sample, speeds = samples[0], [one["tokens_per_second"] for one in samples]
    ratio = f"{ours['tokens_per_second'] / speeds[0]:.2f} x" if ours and speeds[0] else "–"
    return (
        result.system + (" *" if any(one["client_saturated"] for one in samples) else ""),
        f"{speeds[0]:,.0f}",
        f"{min(speeds):,.0f} – {max(speeds):,.0f}",
        f"{sample['requests_per_second']:,.1f}",
        f"{sample['p50_ms']:,.1f}",
        f"{sample['p99_ms']:,.1f}",
        "" if result.system == OURS or trial.rate is not None else ratio,
        f"{sum(sum(one['errors'].values()) for one in samples)} / {sum(one['wrong'] for one in samples)}",
    )


def markdown(head: dict[str, Any], trials: Sequence[Trial], results: Sequence[Result]) -> str:
    """The tables as Markdown, with machines and commands."""
    page = [f"{head['model']}, {head['dtype']} on {head['device']}", ""]
    for run in head["runs"]:
        ended = "; interrupted" if run["interrupted"] else ""
        page += [f"{run['machine_line']}, {run['when']}{ended}", "", f"    {run['command']}", ""]
    for trial in trials:
        page += [f"**{trial}**", "", f"| {' | '.join(HEADER)} |", "|" + "---|" * len(HEADER)]
        page += [f"| {' | '.join(row)} |" for row in rows_of(trial, results)]
        page.append("")
    page += [f"- {line}" for line in remarks(trials, results)]
    return "\n".join(page) + "\n"


def remarks(trials: Sequence[Trial], results: Sequence[Result]) -> list[str]:
    """Each system's settings, notes and troubles."""
    found = []
    for result in results:
        name = result.system + (f" ({result.note})" if result.note else "")
        if result.why_not:
            found.append(f"{name}: {result.why_not}")
            continue
        chosen: dict[str, list[str]] = {}
        for trial in trials:
            if best := result.best(trial):
                chosen.setdefault(best[0], []).append(str(trial))
        found.append(f"{name}: " + "; ".join(f"`{text}` for {', '.join(names)}" for text, names in chosen.items()))
        if tried := [f"`{config}`" for config in result.samples if config not in chosen]:
            found.append(f"{result.system}: no better were {', '.join(tried)}")
        faults = [fault for sample in result.every_sample() for fault in sample["faults"]]
        found += [f"{result.system}: {text}" for text in dict.fromkeys([*result.troubles, *faults])]
    if any(sample["client_saturated"] for result in results for sample in result.every_sample()):
        found.append("* the client's own CPU was saturated in some round: the system may do more")
    return found


def plot(folder: Path, trials: Sequence[Trial], results: Sequence[Result]) -> None:
    """Grouped bars of tokens/s; p99 against the offered rate. What was not measured has no chart.

    Raises ImportError if matplotlib is missing.
    """
    closed = [trial for trial in trials if trial.rate is None]
    bars: dict[str, list[float | None]] = {
        result.system: [sample["tokens_per_second"] if (sample := result.of(trial)) else None for trial in closed]
        for result in results
        if any(result.of(trial) for trial in closed)
    }
    if bars:
        title = "tokens/s by load (tokens x sentences a request @ requests at once)"
        grouped_bars(folder / "tokens-by-load", title, [str(trial) for trial in closed], bars)
    offered = sorted((trial.rate, trial) for trial in trials if trial.rate is not None)
    latencies = {
        result.system: [(rate, sample["p99_ms"]) for rate, trial in offered if (sample := result.of(trial))]
        for result in results
    }
    curves = {name: points for name, points in latencies.items() if points}
    if curves:
        title = f"99th percentile of latency against offered rate, {offered[0][1].tokens} x {offered[0][1].sentences}"
        lines(folder / "p99-by-rate", title, curves, "requests/s offered", "ms")
