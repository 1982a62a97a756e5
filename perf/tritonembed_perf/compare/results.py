"""The figures of each system: kept as JSON, and read again to make one report of several runs."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tritonembed_perf.compare.trials import Trial


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
    middle = statistics.median_low([sample.tokens_per_second for sample in samples])
    return next(sample for sample in samples if sample.tokens_per_second == middle)


@dataclass
class Result:
    """One system. Trials are named as Trial.name has it, configurations by their flags.

    why_not: empty, or why it has no figures. troubles: what went wrong on the way. sweep: of each configuration and
    trial a short sample; chosen: the best configuration of each trial. rounds: no sample for a trial that this
    system can't run. by_replicas: of each count, as text.
    """

    system: str
    note: str = ""
    why_not: str = ""
    troubles: list[str] = field(default_factory=list)
    sweep: dict[str, dict[str, Sample]] = field(default_factory=dict)
    chosen: dict[str, str] = field(default_factory=dict)
    rounds: dict[str, list[Sample]] = field(default_factory=dict)
    by_replicas: dict[str, list[Sample]] = field(default_factory=dict)

    def of(self, trial: Trial) -> Sample | None:
        """The median of the rounds so far."""
        samples = self.rounds.get(trial.name)
        return median(samples) if samples else None

    @property
    def every_sample(self) -> list[Sample]:
        """Of all rounds and counts of replicas; the sweep only chooses."""
        return [one for many in (*self.rounds.values(), *self.by_replicas.values()) for one in many]

    @property
    def faults(self) -> list[str]:
        """What was wrong with its answers, or why requests failed."""
        return list(dict.fromkeys(fault for sample in self.every_sample for fault in sample.faults))

    @staticmethod
    def from_json(entry: Mapping[str, Any]) -> "Result":
        """Of what `dataclasses.asdict` made. Raises TypeError, KeyError and AttributeError for anything else."""

        def read(one: Mapping[str, Any]) -> Sample:
            return Sample(**{**one, "faults": tuple(one["faults"])})

        sweep = {config: {name: read(one) for name, one in of.items()} for config, of in entry["sweep"].items()}
        lists = {
            key: {name: [read(one) for one in many] for name, many in entry[key].items()}
            for key in ("rounds", "by_replicas")
        }
        return Result(**{**entry, "sweep": sweep, **lists})

    def add(self, other: "Result") -> None:
        """What another run found out about the same system: more rounds, more configurations."""
        for mine, theirs in ((self.rounds, other.rounds), (self.by_replicas, other.by_replicas)):
            for name, samples in theirs.items():
                mine.setdefault(name, []).extend(samples)
        for config, of in other.sweep.items():
            self.sweep.setdefault(config, {}).update(of)
        for name, config in other.chosen.items():
            self.chosen[name] = config if self.chosen.get(name, config) == config else f"{self.chosen[name]} / {config}"
        self.troubles = list(dict.fromkeys([*self.troubles, *other.troubles]))
        self.note = self.note or other.note
        if self.rounds:
            self.why_not = ""


def merge(runs: Sequence[Sequence[Result]]) -> list[Result]:
    """One result per system, in the order in which they first come."""
    merged: dict[str, Result] = {}
    for result in (result for results in runs for result in results):
        if result.system in merged:
            merged[result.system].add(result)
        else:
            merged[result.system] = result
    return list(merged.values())
