"""Does the choice beat the defaults? Asked on a load that the search has not seen, both measured in turn."""

from collections.abc import Callable
from dataclasses import dataclass

from tritonembed_manager.tune.attempts import Ledger
from tritonembed_manager.tune.candidate import Candidate
from tritonembed_manager.tune.noise import Comparison, compare, scatter
from tritonembed_manager.tune.search import Measure, Search

ROUNDS = 2
"""Defaults, choice, defaults, choice: what drifts on the machine meets both."""
ATTEMPTS = 2 * ROUNDS
TOO_NOISY = 0.2
"""Where noise hides gains of this size, the measurements say little."""


@dataclass(frozen=True)
class Verdict:
    """Whether the choice is written, and the sentence that says why."""

    beats_defaults: bool
    sentence: str
    comparison: Comparison | None = None
    """On the second load; None where there is nothing to compare."""


OUT_OF_TIME = Verdict(False, "the budget ended before the choice was held against the defaults; the defaults are kept")


def no_gain(search: Search) -> Verdict:
    """The search came back to the defaults."""
    kept = "nothing tried beats the defaults by more than noise; the defaults are kept"
    closest = search.closest()
    detail = "" if closest is None else f" (the best of the others, {closest[0]}: {closest[1]})"
    if closest is not None and closest[1].needed > TOO_NOISY:
        detail += "; equal settings differed too much to tell (is the machine busy with something else?)"
    return Verdict(False, f"the budget ended the search: {kept}{detail}" if search.ran_out else kept + detail)


def check_choice(
    choice: Candidate, defaults: Candidate, load: str, measure: Measure, may_go_on: Callable[[], bool], ledger: Ledger
) -> Verdict:
    """Measure both in turn on the second load. `ledger` takes the attempts; it begins empty.

    A candidate that failed once is not started again.
    """
    for _ in range(ROUNDS):
        for candidate in (defaults, choice):
            if ledger.failure(candidate) is None:
                if not may_go_on():
                    return OUT_OF_TIME
                ledger.add(measure(candidate))
    return _judge(choice, defaults, load, ledger)


def _judge(choice: Candidate, defaults: Candidate, load: str, ledger: Ledger) -> Verdict:
    if not ledger.works(choice):
        return Verdict(False, f"the choice fails on {load} ({ledger.failure(choice)}); the defaults are kept")
    if not ledger.works(defaults):
        return Verdict(True, f"the defaults do not work here ({ledger.failure(defaults)}); the choice does")
    found = compare(ledger.rates(choice), ledger.rates(defaults), scatter(ledger.all_rates()))
    if found.is_gain:
        return Verdict(True, f"the choice beats the defaults on {load} too: {found}", found)
    return Verdict(False, f"the choice does not beat the defaults on {load}: {found}; the defaults are kept", found)
