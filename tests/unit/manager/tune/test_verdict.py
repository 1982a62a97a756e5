"""The choice compared with the defaults on a second load."""

import pytest
from tests.unit.manager.tune.machines import DEFAULTS, SPACE, Machine, flat

from tritonembed_manager.tune.search import OUT_OF_TIME, Search, check_choice, no_gain
from tritonembed_manager.tune.trials import TrialLedger

CHOICE = DEFAULTS.with_value("replicas", 3)
SECOND = "200x1@256"


def check(machine, trials=1000):
    machine.loads = (SECOND,)
    return check_choice(CHOICE, DEFAULTS, SECOND, machine, lambda: len(machine.tried) < trials, TrialLedger())


def faster(ratio):
    return lambda candidate: 100e3 * (ratio if candidate == CHOICE else 1)


def test_choice_and_defaults_are_measured_in_turn():
    machine = Machine(flat)
    check(machine)
    assert machine.tried == [DEFAULTS, CHOICE, DEFAULTS, CHOICE]


def test_a_choice_that_is_faster_beats_the_defaults():
    verdict = check(Machine(faster(1.3), noise=0.03))
    assert verdict.beats_defaults
    assert verdict.comparison.gain == pytest.approx(0.3, abs=0.1)
    assert SECOND in verdict.sentence


def test_a_choice_that_gains_nothing_on_the_second_load_keeps_the_defaults_with_a_reason():
    verdict = check(Machine(flat))
    assert not verdict.beats_defaults
    assert "does not beat the defaults on 200x1@256: +0.0%" in verdict.sentence
    assert "the defaults are kept" in verdict.sentence


def test_a_choice_that_is_slower_on_the_second_load_keeps_the_defaults():
    assert not check(Machine(faster(0.7))).beats_defaults


def test_drift_of_the_machine_affects_both():
    speeds = iter([100e3, 90e3, 80e3, 70e3])
    # The machine gets slower with every server. Without turns, the first would win by a third.
    assert not check(Machine(lambda candidate: next(speeds))).beats_defaults


def test_luck_of_one_percent_is_no_gain():
    assert not check(Machine(faster(1.01))).beats_defaults


def test_noise_alone_rarely_beats_the_defaults():
    wins = [check(Machine(flat, noise=0.05, drift=0.03, seed=seed)).beats_defaults for seed in range(200)]
    assert sum(wins) <= 20


def test_a_choice_that_fails_on_the_second_load_keeps_the_defaults_and_is_not_restarted():
    machine = Machine(failing=lambda c: "requests of 200x1@256 failed: 3 UNAVAILABLE" if c == CHOICE else None)
    verdict = check(machine)
    assert not verdict.beats_defaults
    assert "3 UNAVAILABLE" in verdict.sentence
    assert machine.tried.count(CHOICE) == 1


def test_defaults_that_fail_on_the_second_load_lose():
    verdict = check(Machine(failing=lambda c: "out of memory" if c == DEFAULTS else None))
    assert verdict.beats_defaults
    assert "the defaults do not work here (out of memory)" in verdict.sentence


def test_without_time_for_the_whole_check_the_defaults_are_kept():
    assert check(Machine(faster(2)), trials=3) == OUT_OF_TIME
    assert not OUT_OF_TIME.beats_defaults


def test_a_search_without_gain_names_the_closest_candidate():
    search = Search(SPACE, DEFAULTS, Machine(lambda c: 100e3 / c.replicas), lambda: True, TrialLedger())
    search.run()
    verdict = no_gain(search)
    assert not verdict.beats_defaults
    assert verdict.sentence.startswith("nothing tried beats the defaults by more than noise; the defaults are kept")
    assert "+0.0%" in verdict.sentence


def test_a_search_with_too_much_noise_reports_it():
    search = Search(SPACE, DEFAULTS, Machine(flat, noise=0.3), lambda: True, TrialLedger())
    search.run()
    assert no_gain(search).sentence.endswith("is the machine busy with something else?)")


def test_a_search_that_ran_out_of_time_reports_it():
    search = Search(SPACE, DEFAULTS, Machine(), lambda: False, TrialLedger())
    search.run()
    assert no_gain(search).sentence.startswith("the budget ended the search: nothing tried")
