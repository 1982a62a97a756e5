"""A whole tuning on a machine that is a formula: its decision and its output."""

import io
import time

import pytest
from tests.unit.manager.tune.machines import DEFAULTS, SPACE, Machine, bottleneck, flat

from tritonembed_manager.errors import ManagerError
from tritonembed_manager.tune.loads import LoadShape
from tritonembed_manager.tune.output import Table, TuneProgress
from tritonembed_manager.tune.plan import TunePlan
from tritonembed_manager.tune.run import Session
from tritonembed_manager.tune.trials import Candidate

PLAN = TunePlan(SPACE, DEFAULTS, 16384, [LoadShape(50, 64, 32)], LoadShape(200, 1, 256))


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Tuning:
    """A session, its machine and its output."""

    def __init__(self, machine, minutes=60, terminal=False):
        self.out, self.err = io.StringIO(), Terminal() if terminal else io.StringIO()
        self.machine = machine

        def measure(candidate, loads, limit, stage):
            assert limit > 0
            machine.loads = [str(load) for load in loads]
            for doing in ("starting", "run 1 of 3", "stopping"):
                stage(doing)
            return machine(candidate)

        ends = time.monotonic() + minutes * 60
        self.session = Session(PLAN, measure, "50x64@32", ends, Table(self.out), TuneProgress(self.err))

    def run(self):
        return self.session.run()


def test_the_choice_was_found_by_the_search_and_confirmed_by_the_second_load():
    tuning = Tuning(Machine())
    written, verdict = tuning.run()
    assert written == Candidate(8, 3, 16384)
    assert verdict.beats_defaults
    checked = [trial.candidate for trial in tuning.session.checked.trials]
    assert checked == [DEFAULTS, written, DEFAULTS, written]


def test_without_gain_the_defaults_are_written_and_nothing_is_checked():
    tuning = Tuning(Machine(flat))
    written, verdict = tuning.run()
    assert written == DEFAULTS
    assert not verdict.beats_defaults
    assert not tuning.session.checked.trials


def test_luck_hardly_ever_passes_search_and_check_together():
    written = [Tuning(Machine(flat, noise=0.05, drift=0.03, seed=seed)).run()[0] for seed in range(100)]
    assert sum(candidate != DEFAULTS for candidate in written) <= 2


def test_a_choice_that_fails_its_check_leaves_the_defaults():
    machine = Machine()
    machine.speed = lambda candidate: bottleneck(candidate) if machine.loads == ["50x64@32"] else 50e3
    written, verdict = Tuning(machine).run()
    assert written == DEFAULTS
    assert "does not beat the defaults" in verdict.sentence


def test_defaults_that_do_not_start_lose_to_a_choice_that_works_on_the_second_load():
    tuning = Tuning(Machine(failing=lambda c: "CUDA out of memory" if c == DEFAULTS else None))
    written, verdict = tuning.run()
    assert written != DEFAULTS
    assert verdict.beats_defaults
    assert "the defaults do not work here (CUDA out of memory)" in verdict.sentence
    assert [trial.candidate for trial in tuning.session.checked.trials] == [DEFAULTS, written, written]


def test_defaults_that_failed_once_get_another_chance():
    machine = Machine(flat)
    machine.failing = lambda c: "a python process died" if len(machine.tried) == 1 else None
    written, verdict = Tuning(machine).run()
    assert written == DEFAULTS
    assert "does not beat the defaults" in verdict.sentence


def test_it_is_an_error_if_neither_works_on_the_second_load():
    machine = Machine()
    machine.failing = lambda c: "too slow" if c == DEFAULTS or machine.loads == ["200x1@256"] else None
    with pytest.raises(ManagerError, match=r"the choice fails on 200x1@256 \(too slow\), and the defaults do not work"):
        Tuning(machine).run()


def test_without_time_for_the_check_a_choice_still_beats_defaults_that_never_worked():
    machine = Machine(failing=lambda c: "CUDA out of memory" if c == DEFAULTS else None)
    tuning = Tuning(machine)
    tuning.session._time_for_one = lambda: False
    written, verdict = tuning.run()
    assert written != DEFAULTS
    assert verdict.sentence.endswith("the choice does, unchecked on a second load")


def test_if_no_server_works_the_error_is_the_reason_of_the_defaults():
    with pytest.raises(ManagerError, match="no server worked; with the defaults: no GPU"):
        Tuning(Machine(failing=lambda candidate: "no GPU")).run()


def test_a_budget_that_is_over_after_the_first_trial_leaves_the_defaults():
    # A trial takes 10 s here. After the first, there is no time for another trial and the check's four.
    tuning = Tuning(Machine(), minutes=0.5)
    written, verdict = tuning.run()
    assert written == DEFAULTS
    assert verdict.sentence.startswith("the budget ended the search")
    assert len(tuning.machine.tried) == 1


def test_the_table_has_a_row_for_every_trial_even_if_it_fails():
    tuning = Tuning(Machine(failing=lambda c: "CUDA out of memory" if c.replicas == 3 else None))
    tuning.run()
    lines = tuning.out.getvalue().splitlines()
    rows = [line for line in lines if line.split()[0].isdigit()]
    assert len(rows) == len(tuning.machine.tried)
    assert [int(row.split()[0]) for row in rows] == list(range(1, len(rows) + 1))
    assert rows[0].split() == ["1", "2", "1", "16384", "50x64@32", "60,000", "10.0", "20.0"]
    assert rows[1].split()[-1] == "+66.7%"
    assert any(row.endswith("CUDA out of memory") for row in rows)
    assert sum("tokens/s" in line for line in lines) == 2


def test_an_interrupt_leaves_the_rows_so_far():
    machine = Machine(flat)

    def failing(candidate):
        if len(machine.tried) == 3:
            raise KeyboardInterrupt

    machine.failing = failing
    tuning = Tuning(machine)
    with pytest.raises(KeyboardInterrupt):
        tuning.run()
    rows = [line for line in tuning.out.getvalue().splitlines() if line.split()[0].isdigit()]
    assert len(rows) == 2


def test_on_a_terminal_one_line_is_rewritten_with_the_remaining_time():
    tuning = Tuning(Machine(flat), terminal=True)
    tuning.run()
    said = tuning.err.getvalue()
    assert "\n" not in said
    assert "2 tokenizers, 1 replica, 16384 tokens per batch (the defaults): starting" in said
    assert "run 1 of 3, about" in said
    assert said.endswith("\r\x1b[K")


def test_outside_of_a_terminal_each_trial_is_one_line():
    tuning = Tuning(Machine(flat))
    tuning.run()
    lines = tuning.err.getvalue().splitlines()
    assert len(lines) == len(tuning.machine.tried)
    assert all(line.startswith("tritonembed-manager: ") for line in lines)
    assert "about 90 s left" in lines[1]
