"""The loads and the figures of each system: kept as JSON, and read again to make one report of several runs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tritonembed_perf.failures import UsageError


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


@dataclass(frozen=True)
class Sample:
    """What came back in one measurement. Latencies in milliseconds; of a program in process those of its calls.

    errors: requests that failed; wrong: answers that were; faults: both in words. client_cores: CPU of the clients.
    """

    tokens_per_second: float
    requests_per_second: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    errors: int
    wrong: int
    faults: tuple[str, ...]
    client_cores: float
    client_saturated: bool

    @property
    def is_sound(self) -> bool:
        """Whether every request was answered, and rightly."""
        return not (self.errors or self.wrong) and self.tokens_per_second > 0


def median(samples: Sequence[Sample]) -> Sample:
    """The sample of the median tokens/s; of an even number the lower of the two."""
    return sorted(samples, key=lambda sample: sample.tokens_per_second)[(len(samples) - 1) // 2]


@dataclass
class Result:
    """One system. Trials are named by their `str`, configurations as they are typed.

    why_not: empty, or why it has no figures. troubles: what went wrong on the way. sweep: of each configuration and
    trial a short sample; chosen: the best configuration of each trial. rounds: no sample for a trial that this
    system can't run.
    """

    system: str
    note: str = ""
    why_not: str = ""
    troubles: list[str] = field(default_factory=list)
    sweep: dict[str, dict[str, Sample]] = field(default_factory=dict)
    chosen: dict[str, str] = field(default_factory=dict)
    rounds: dict[str, list[Sample]] = field(default_factory=dict)

    def of(self, trial: Trial) -> Sample | None:
        """The median of the rounds so far."""
        samples = self.rounds.get(str(trial))
        return median(samples) if samples else None

    @property
    def every_sample(self) -> list[Sample]:
        """Of all rounds; the sweep only chooses."""
        return [one for many in self.rounds.values() for one in many]

    @staticmethod
    def from_json(entry: Mapping[str, Any]) -> "Result":
        """Of what `dataclasses.asdict` made. Raises TypeError, KeyError and AttributeError for anything else."""

        def read(one: Mapping[str, Any]) -> Sample:
            return Sample(**{**one, "faults": tuple(one["faults"])})

        plain = {key: entry[key] for key in ("system", "note", "why_not", "troubles", "chosen")}
        sweep = {config: {name: read(one) for name, one in of.items()} for config, of in entry["sweep"].items()}
        rounds = {name: [read(one) for one in many] for name, many in entry["rounds"].items()}
        return Result(**plain, sweep=sweep, rounds=rounds)

    def add(self, other: "Result") -> None:
        """What another run found out about the same system: more rounds, more configurations."""
        for name, samples in other.rounds.items():
            self.rounds.setdefault(name, []).extend(samples)
        for config, of in other.sweep.items():
            self.sweep.setdefault(config, {}).update(of)
        for name, config in other.chosen.items():
            self.chosen[name] = config if self.chosen.get(name, config) == config else f"{self.chosen[name]} / {config}"
        self.troubles = list(dict.fromkeys([*self.troubles, *other.troubles]))
        self.note = self.note or other.note
        if self.rounds:
            self.why_not = ""


Report = tuple[dict[str, Any], list[Result]]
"""All but the systems, as JSON, and the systems."""


def read_report(option: str, path: Path) -> Report:
    """Of a compare.json. option: that named it. Raises UsageError."""
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
