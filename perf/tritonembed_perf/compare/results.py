"""What is known of each system: kept as JSON, and read again to make one report of several runs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tritonembed_perf.compare.sample import Sample, median
from tritonembed_perf.compare.trials import Trial

Samples = dict[str, list[Sample]]


@dataclass
class Result:
    """One system. Trials are named as Trial.name has it, configurations by their flags.

    why_not: empty, or why it has no figures. troubles: what went wrong on the way. sweep: of each configuration and
    trial a short sample; chosen: the best configuration of each trial. rounds: no sample for a trial that is nothing
    for this system. by_replicas: of each count, as text.
    """

    system: str
    note: str = ""
    why_not: str = ""
    troubles: list[str] = field(default_factory=list)
    sweep: dict[str, dict[str, Sample]] = field(default_factory=dict)
    chosen: dict[str, str] = field(default_factory=dict)
    rounds: Samples = field(default_factory=dict)
    by_replicas: Samples = field(default_factory=dict)

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
        """Of what `dataclasses.asdict` made. Raises TypeError and KeyError for anything else."""
        read = Sample.from_json
        return Result(
            str(entry["system"]),
            str(entry["note"]),
            str(entry["why_not"]),
            list(entry["troubles"]),
            {config: {name: read(one) for name, one in of.items()} for config, of in entry["sweep"].items()},
            dict(entry["chosen"]),
            {name: [read(one) for one in many] for name, many in entry["rounds"].items()},
            {count: [read(one) for one in many] for count, many in entry["by_replicas"].items()},
        )

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


def to_json(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One entry a system, with every sample of the sweep and of the rounds."""
    return [asdict(result) for result in results]


def merge(runs: Sequence[Sequence[Result]]) -> list[Result]:
    """One result a system, in the order in which they first come."""
    merged: dict[str, Result] = {}
    for results in runs:
        for result in results:
            if result.system in merged:
                merged[result.system].add(result)
            else:
                merged[result.system] = result
    return list(merged.values())
