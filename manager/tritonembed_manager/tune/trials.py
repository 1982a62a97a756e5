"""Candidates, their measurements, and whether a difference is a gain or noise.

Rates are compared by their medians, on a logarithmic scale, and the difference with their scatter.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace


@dataclass(frozen=True)
class Candidate:
    """The settings with which a server is started."""

    tokenizer_instances: int
    replicas: int
    """Embedder instances per GPU (or per group of GPUs)."""
    max_batch_tokens: int
    """Tokens in one forward pass."""

    def __str__(self) -> str:
        tokenizers = _counted(self.tokenizer_instances, "tokenizer")
        return f"{tokenizers}, {_counted(self.replicas, 'replica')}, {self.max_batch_tokens} tokens per batch"

    def with_value(self, setting: str, value: int) -> "Candidate":
        """This candidate with another value of one setting."""
        return replace(self, **{setting: value})


SETTINGS = tuple(field.name for field in fields(Candidate))
"""The settings, in the order in which the search tries them."""


@dataclass(frozen=True)
class Space:
    """The values of each setting, ascending and without repetition."""

    tokenizer_instances: Sequence[int]
    replicas: Sequence[int]
    max_batch_tokens: Sequence[int]

    def values(self, setting: str) -> Sequence[int]:
        """The values of one of SETTINGS."""
        found: Sequence[int] = getattr(self, setting)
        return found

    def nearest(self, wanted: Candidate) -> Candidate:
        """The candidate of this space that is closest to `wanted`, which may be outside of it."""
        return Candidate(**{name: _closest(self.values(name), getattr(wanted, name)) for name in SETTINGS})

    @property
    def has_choice(self) -> bool:
        """Whether a setting has more than one value."""
        return any(len(self.values(name)) > 1 for name in SETTINGS)


def _closest(values: Sequence[int], wanted: int) -> int:
    return min(values, key=lambda value: (abs(value - wanted), value))


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


@dataclass(frozen=True)
class LoadRun:
    """A run of a load. Latencies of requests, in milliseconds."""

    tokens_per_second: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class CandidateTrial:
    """A server's start with a candidate, and the runs of each load against the server."""

    candidate: Candidate
    runs: Mapping[str, Sequence[LoadRun]]
    """Runs by the load's name; empty if the trial failed."""
    failure: str | None = None
    """Why the trial has no figures: the server did not start, or requests failed."""
    seconds: float = 0.0
    """Duration, the server's start and end included."""

    def rates(self) -> dict[str, list[float]]:
        """Tokens per second of its runs, by load."""
        return {load: [run.tokens_per_second for run in runs] for load, runs in self.runs.items()}


@dataclass
class TrialLedger:
    """Every trial so far, in order."""

    trials: list[CandidateTrial] = field(default_factory=list)

    def add(self, trial: CandidateTrial) -> None:
        """Add a trial."""
        self.trials.append(trial)

    def candidates(self) -> list[Candidate]:
        """The candidates that were tried, in the order of their first trials."""
        return list(dict.fromkeys(trial.candidate for trial in self.trials))

    def count(self, candidate: Candidate) -> int:
        """The number of a candidate's trials."""
        return sum(trial.candidate == candidate for trial in self.trials)

    def works(self, candidate: Candidate) -> bool:
        """Whether a candidate was tried and no trial failed: one that starts only sometimes can't be chosen."""
        mine = [trial for trial in self.trials if trial.candidate == candidate]
        return bool(mine) and all(trial.failure is None for trial in mine)

    def failure(self, candidate: Candidate) -> str | None:
        """The reason of a candidate's first failed trial."""
        found = (trial.failure for trial in self.trials if trial.candidate == candidate)
        return next(filter(None, found), None)

    def rates(self, candidate: Candidate) -> dict[str, list[float]]:
        """Tokens per second of all its runs, by load."""
        rates: dict[str, list[float]] = {}
        for trial in self.trials:
            if trial.candidate == candidate:
                for load, found in trial.rates().items():
                    rates.setdefault(load, []).extend(found)
        return rates

    def slowest(self, candidate: Candidate) -> dict[str, list[float]]:
        """The rates of a candidate's slowest trial. The candidate must work."""
        mine = [trial.rates() for trial in self.trials if trial.candidate == candidate]
        return min(mine, key=lambda rates: sum(math.log(statistics.median(found)) for found in rates.values()))

    def all_rates(self) -> list[list[float]]:
        """One list for each candidate and load."""
        return [rates for candidate in self.candidates() for rates in self.rates(candidate).values()]

    def mean_seconds(self) -> float:
        """Mean seconds of a trial; 0 if there was none."""
        return sum(trial.seconds for trial in self.trials) / len(self.trials) if self.trials else 0.0


LEAST_GAIN = 0.02
"""A smaller gain is not worth a setting, however certain it is."""
LEAST_SCATTER = 0.005
"""The least scatter: a few runs can agree by chance more closely than the machine does."""
STANDARD_ERRORS = 2.0
"""The difference of two medians counts if it is at least this many standard errors."""
MEDIAN_EFFICIENCY = math.pi / 2
"""Variance of a median over that of a mean, for normal scatter."""


@dataclass(frozen=True)
class RateComparison:
    """A candidate compared with another. Both figures are ratios: 0.05 is 5 % more tokens per second."""

    gain: float
    needed: float
    """What a gain must exceed to be more than noise."""

    @property
    def is_gain(self) -> bool:
        """Faster, and by more than noise."""
        return self.gain > self.needed

    @property
    def is_promising(self) -> bool:
        """Perhaps noise, but worth another trial."""
        return self.gain > max(LEAST_GAIN, self.needed / 2)

    @property
    def is_clear(self) -> bool:
        """So much faster that one trial is enough."""
        return self.gain > 3 * self.needed

    def __str__(self) -> str:
        return f"{self.gain:+.1%} (noise: up to {self.needed:.1%})"


def scatter(groups: Iterable[Sequence[float]]) -> float:
    """Standard deviation of ln(rate) within groups of equal settings, pooled over the groups."""
    squares, freedom = 0.0, 0
    for group in groups:
        if len(group) > 1:
            logs = [math.log(rate) for rate in group]
            mean = statistics.fmean(logs)
            squares += sum((value - mean) ** 2 for value in logs)
            freedom += len(group) - 1
    return max(math.sqrt(squares / freedom) if freedom else 0.0, LEAST_SCATTER)


def compare(
    challenger: Mapping[str, Sequence[float]], holder: Mapping[str, Sequence[float]], sigma: float
) -> RateComparison:
    """Rates by load, each load with the same weight. sigma: what `scatter` gave."""
    loads = holder.keys() & challenger.keys()
    if not loads:
        raise ValueError("nothing was measured on both")
    difference = statistics.fmean(
        math.log(statistics.median(challenger[load]) / statistics.median(holder[load])) for load in loads
    )
    variance = sum(1 / len(challenger[load]) + 1 / len(holder[load]) for load in loads) * MEDIAN_EFFICIENCY * sigma**2
    error = math.sqrt(variance) / len(loads)
    return RateComparison(math.expm1(difference), max(LEAST_GAIN, math.expm1(STANDARD_ERRORS * error)))
