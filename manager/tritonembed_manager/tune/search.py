"""The search changes one setting at a time, from the defaults on, as long as that helps. It never tries the full
product.

The verdict then says whether the choice beats the defaults on a load that the search has not used.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tritonembed_manager.tune.trials import (
    SETTINGS,
    Candidate,
    CandidateTrial,
    RateComparison,
    Space,
    TrialLedger,
    compare,
    scatter,
)

PASSES = 3
"""The most turns of each setting: it may gain only once another setting has changed."""

Measure = Callable[[Candidate], CandidateTrial]


@dataclass
class Search:
    """Coordinate descent: `run` returns the best candidate; `ledger` holds all trials.

    measure: starts a server and measures. A failure is part of its result; an exception ends the search. may_go_on:
    called before each trial except the first; False ends the search with the trials so far.
    """

    space: Space
    start: Candidate
    measure: Measure
    may_go_on: Callable[[], bool]
    ledger: TrialLedger

    def __post_init__(self) -> None:
        self.best = self.start
        self.ran_out = False
        """Whether `may_go_on` ended it."""

    def run(self) -> Candidate:
        """The best candidate found; the start if nothing beats it by more than noise."""
        self._trial(self.start)
        for _ in range(PASSES):
            before = self.best
            for setting in SETTINGS:
                self._walk(setting)
            if self.best == before or self.ran_out:
                break
        self._settle()
        return self.best

    def untried(self) -> int:
        """How many neighbours of the best were not tried: the fewest trials that are still to come."""
        near = {self.best}
        for setting in SETTINGS:
            values = list(self.space.values(setting))
            place = values.index(getattr(self.best, setting))
            near |= {self.best.with_value(setting, value) for value in values[max(place - 1, 0) : place + 2]}
        return sum(not self.ledger.count(candidate) for candidate in near)

    def closest(self) -> tuple[Candidate, RateComparison] | None:
        """The best of the other candidates, and its comparison with the start; None if none can be compared."""
        found = [(c, self.comparison(c, self.start)) for c in self.ledger.candidates() if c != self.start]
        compared = [(candidate, comparison) for candidate, comparison in found if comparison is not None]
        return max(compared, key=lambda pair: pair[1].gain, default=None)

    def comparison(self, candidate: Candidate, holder: Candidate) -> RateComparison | None:
        """How a candidate compares with another; None if one of the two does not work.

        The candidate's slowest trial counts: a gain that a second server does not repeat was no gain.
        """
        if not (self.ledger.works(candidate) and self.ledger.works(holder)):
            return None
        sigma = scatter(self.ledger.all_rates())
        return compare(self.ledger.slowest(candidate), self.ledger.rates(holder), sigma)

    def _walk(self, setting: str) -> None:
        """Try larger values as long as they help; if none does, smaller values."""
        values = list(self.space.values(setting))
        for step in (1, -1):
            origin = self.best
            place = values.index(getattr(origin, setting)) + step
            while 0 <= place < len(values) and self._improves(origin.with_value(setting, values[place])):
                self.best = origin.with_value(setting, values[place])
                place += step
            if self.best != origin or self.ran_out:
                return

    def _improves(self, candidate: Candidate) -> bool:
        if not self.ledger.count(candidate) and not self._trial_if_time(candidate):
            return False
        found = self.comparison(candidate, self.best)
        if found is None:
            return self.ledger.works(candidate)
        if found.is_clear or not found.is_promising or self.ledger.count(candidate) > 1:
            return found.is_gain
        # The gain is close to noise: another start decides.
        return self._trial_if_time(candidate) and self._is_better(candidate)

    def _is_better(self, candidate: Candidate) -> bool:
        found = self.comparison(candidate, self.best)
        return self.ledger.works(candidate) if found is None else found.is_gain

    def _settle(self) -> None:
        """Try the best again: a gain that a second start does not repeat was no gain."""
        while self.best != self.start and self.ledger.count(self.best) == 1:
            unsure, self.best = self.best, self.start
            if not self._trial_if_time(unsure):
                return
            for candidate in self.ledger.candidates():
                if self._is_better(candidate):
                    self.best = candidate

    def _trial_if_time(self, candidate: Candidate) -> bool:
        self.ran_out = self.ran_out or not self.may_go_on()
        if self.ran_out:
            return False
        self._trial(candidate)
        return True

    def _trial(self, candidate: Candidate) -> None:
        self.ledger.add(self.measure(candidate))


ROUNDS = 2
"""Defaults, choice, defaults, choice: a drift of the machine affects both."""
TRIALS = 2 * ROUNDS
TOO_NOISY = 0.2
"""If noise hides a gain of this size, the measurements prove little."""


@dataclass(frozen=True)
class TuneVerdict:
    """Whether to write the choice, and the reason in a sentence."""

    beats_defaults: bool
    sentence: str
    comparison: RateComparison | None = None
    """The comparison on the second load; None without a comparison."""


OUT_OF_TIME = TuneVerdict(
    False, "the budget ended before the choice was compared with the defaults; the defaults are kept"
)


def no_gain(search: Search) -> TuneVerdict:
    """The verdict if the search ended at the defaults."""
    kept = "nothing tried beats the defaults by more than noise; the defaults are kept"
    closest = search.closest()
    detail = "" if closest is None else f" (the best of the others, {closest[0]}: {closest[1]})"
    if closest is not None and closest[1].needed > TOO_NOISY:
        detail += "; equal settings differed too much for a verdict (is the machine busy with something else?)"
    return TuneVerdict(False, f"the budget ended the search: {kept}{detail}" if search.ran_out else kept + detail)


def check_choice(
    choice: Candidate,
    defaults: Candidate,
    load: str,
    measure: Measure,
    may_go_on: Callable[[], bool],
    ledger: TrialLedger,
) -> TuneVerdict:
    """Measure both in turn on the second load. The trials are added to `ledger`, which begins empty.

    A candidate that failed once is not started again.
    """
    for _ in range(ROUNDS):
        for candidate in (defaults, choice):
            if ledger.failure(candidate) is None:
                if not may_go_on():
                    return OUT_OF_TIME
                ledger.add(measure(candidate))
    return _judge(choice, defaults, load, ledger)


def _judge(choice: Candidate, defaults: Candidate, load: str, ledger: TrialLedger) -> TuneVerdict:
    if not ledger.works(choice):
        return TuneVerdict(False, f"the choice fails on {load} ({ledger.failure(choice)}); the defaults are kept")
    if not ledger.works(defaults):
        return TuneVerdict(True, f"the defaults do not work here ({ledger.failure(defaults)}); the choice does")
    found = compare(ledger.rates(choice), ledger.rates(defaults), scatter(ledger.all_rates()))
    if found.is_gain:
        return TuneVerdict(True, f"the choice beats the defaults on {load} too: {found}", found)
    return TuneVerdict(False, f"the choice does not beat the defaults on {load}: {found}; the defaults are kept", found)
