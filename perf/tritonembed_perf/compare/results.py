"""The loads and the figures of each system: kept as JSON, and read again to make one report of several runs."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tritonembed_perf.failures import UsageError

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
        """Of what `str` gives. Raises ValueError."""
        shape, _, rate = name.removesuffix("/s").partition(" at ")
        shape, _, concurrency = shape.partition("@")
        tokens, sentences = (int(part) for part in shape.split("x"))
        return Trial(tokens, sentences, int(concurrency) if concurrency else None, float(rate) if rate else None)

    def __str__(self) -> str:
        """50x64@4, or 50x1 at 20/s."""
        shape = f"{self.tokens}x{self.sentences}"
        return f"{shape}@{self.concurrency}" if self.rate is None else f"{shape} at {self.rate:g}/s"

    def rank(self, sample: Sample) -> tuple[bool, float]:
        """The least is the best: nothing failed or wrong, then most tokens/s, of an offered rate the least p99."""
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
        """With all settings."""
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
    """Of a compare.json. Raises UsageError."""
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
