"""One tuning from the first attempt to the verdict."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tritonembed_manager.errors import ManagerError
from tritonembed_manager.tune.attempts import Attempt, Ledger
from tritonembed_manager.tune.candidate import Candidate
from tritonembed_manager.tune.loads import LoadShape
from tritonembed_manager.tune.report import Progress, Stage, Table, describe, gains_over
from tritonembed_manager.tune.search import Search
from tritonembed_manager.tune.tune_options import Plan
from tritonembed_manager.tune.verdict import ATTEMPTS, Verdict, check_choice, no_gain

MeasureLoads = Callable[[Candidate, Sequence[LoadShape], float, Stage], Attempt]
"""Measures a candidate under loads; the number is the seconds until its server has to be ready."""


@dataclass
class Session:
    """One tuning with everything that it learns."""

    plan: Plan
    measure: MeasureLoads
    title: str
    """Over the table of the search."""
    ends: float
    """When the budget ends, on the monotonic clock."""
    table: Table
    progress: Progress
    searched: Ledger = field(default_factory=Ledger)
    checked: Ledger = field(default_factory=Ledger)

    def run(self) -> tuple[Candidate, Verdict]:
        """What to write, and why. Raises ManagerError when no server works, Interrupted at a stop signal."""
        plan = self.plan
        self.table.title(self.title)
        search = Search(plan.space, plan.defaults, self._search_attempt, self._time_for_more, self.searched)
        self._search = search
        choice = search.run()
        if not self.searched.works(choice):
            raise ManagerError(f"no server worked; with the defaults: {self.searched.failure(plan.defaults)}")
        verdict = self._judge(choice)
        return (choice if verdict.beats_defaults else plan.defaults), verdict

    def _judge(self, choice: Candidate) -> Verdict:
        defaults = self.plan.defaults
        if choice == defaults:
            return no_gain(self._search)
        second = str(self.plan.second)
        self.table.title(f"Check on a second load: {second}, the defaults and the choice in turn")
        verdict = check_choice(choice, defaults, second, self._check_attempt, self._time_for_one, self.checked)
        if verdict.beats_defaults or self.searched.works(defaults) or self.checked.works(defaults):
            return verdict
        # The defaults have never worked: there is nothing to keep.
        reason = self.searched.failure(defaults)
        if self.checked.failure(choice) is not None:
            raise ManagerError(f"{verdict.sentence.partition(';')[0]}, and the defaults do not work: {reason}")
        return Verdict(True, f"the defaults do not work here ({reason}); the choice does, unchecked on a second load")

    def _search_attempt(self, candidate: Candidate) -> Attempt:
        to_come = self._search.untried() + ATTEMPTS
        return self._attempt(candidate, self.plan.loads, self.searched, to_come)

    def _check_attempt(self, candidate: Candidate) -> Attempt:
        return self._attempt(candidate, [self.plan.second], self.checked, ATTEMPTS - len(self.checked.attempts))

    def _attempt(self, candidate: Candidate, loads: Sequence[LoadShape], ledger: Ledger, to_come: int) -> Attempt:
        mean = ledger.mean_seconds() or self.searched.mean_seconds()
        left, how_sure = (min(to_come * mean, self._left()), "about") if mean else (self._left(), "at most")
        self.progress.begin(describe(candidate, self.plan.defaults), left, how_sure)
        attempt = self.measure(candidate, loads, max(self._left(), 1.0), self.progress.stage)
        self.progress.clear()
        # What came before it: the first row of the defaults has nothing to be compared with.
        self.table.row(attempt, gains_over(attempt, ledger.rates(self.plan.defaults)))
        return attempt

    def _time_for_more(self) -> bool:
        """Is there time for another attempt, and after it for the check on the second load?"""
        return self._left() > (1 + ATTEMPTS) * self.searched.mean_seconds()

    def _time_for_one(self) -> bool:
        return self._left() > self.searched.mean_seconds()

    def _left(self) -> float:
        return self.ends - time.monotonic()
