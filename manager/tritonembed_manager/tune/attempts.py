"""What was measured: runs of a load, attempts with a candidate, and the ledger that keeps them all."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tritonembed_manager.tune.candidate import Candidate


@dataclass(frozen=True)
class Run:
    """One run of one load. Latencies in milliseconds, of a request."""

    tokens_per_second: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Attempt:
    """One server start with a candidate, and the runs of each load against it."""

    candidate: Candidate
    runs: Mapping[str, Sequence[Run]]
    """By the load's name; empty when it failed."""
    failure: str | None = None
    """Why there are no figures: the server did not start, or requests failed."""
    seconds: float = 0.0
    """How long it took, start and end of the server included."""

    def rates(self) -> dict[str, list[float]]:
        """Tokens a second of its runs, by load."""
        return {load: [run.tokens_per_second for run in runs] for load, runs in self.runs.items()}


@dataclass
class Ledger:
    """Every attempt so far, in order."""

    attempts: list[Attempt] = field(default_factory=list)

    def add(self, attempt: Attempt) -> None:
        """Take an attempt in."""
        self.attempts.append(attempt)

    def candidates(self) -> list[Candidate]:
        """What was tried, in the order of the first attempts."""
        return list(dict.fromkeys(attempt.candidate for attempt in self.attempts))

    def count(self, candidate: Candidate) -> int:
        """How often it was tried."""
        return sum(attempt.candidate == candidate for attempt in self.attempts)

    def works(self, candidate: Candidate) -> bool:
        """Tried, and no attempt failed: a candidate that starts only sometimes is none to choose."""
        mine = [attempt for attempt in self.attempts if attempt.candidate == candidate]
        return bool(mine) and all(attempt.failure is None for attempt in mine)

    def failure(self, candidate: Candidate) -> str | None:
        """Why its first failed attempt failed."""
        found = (attempt.failure for attempt in self.attempts if attempt.candidate == candidate)
        return next(filter(None, found), None)

    def rates(self, candidate: Candidate) -> dict[str, list[float]]:
        """Tokens a second of all its runs, by load."""
        rates: dict[str, list[float]] = {}
        for attempt in self.attempts:
            if attempt.candidate == candidate:
                for load, found in attempt.rates().items():
                    rates.setdefault(load, []).extend(found)
        return rates

    def slowest(self, candidate: Candidate) -> dict[str, list[float]]:
        """The same of its slowest attempt alone; the candidate works."""
        mine = [attempt.rates() for attempt in self.attempts if attempt.candidate == candidate]
        return min(mine, key=lambda rates: sum(math.log(statistics.median(found)) for found in rates.values()))

    def all_rates(self) -> list[list[float]]:
        """One list for each candidate and load."""
        return [rates for candidate in self.candidates() for rates in self.rates(candidate).values()]

    def mean_seconds(self) -> float:
        """How long an attempt takes; 0 when there was none."""
        return sum(attempt.seconds for attempt in self.attempts) / len(self.attempts) if self.attempts else 0.0
