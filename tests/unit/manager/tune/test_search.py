"""The search on machines with a known best."""

import pytest
from tests.unit.manager.tune.machines import DEFAULTS, SPACE, Machine, bottleneck, flat

from tritonembed_manager.tune.search import Search
from tritonembed_manager.tune.trials import Candidate, Space, TrialLedger

FULL_PRODUCT = 4 * 3 * 3


def search(machine, start=DEFAULTS, space=SPACE, trials=1000):
    """A search that may make `trials` trials."""
    return Search(space, start, machine, lambda: len(machine.tried) < trials, TrialLedger())


def test_the_best_is_found_even_if_a_setting_gains_only_after_another_changed():
    machine = Machine()
    # It starts at 60K. First the tokenizers are the bottleneck, then the replica, then the tokenizers again.
    found = search(machine).run()
    assert bottleneck(found) == 240e3
    assert found == Candidate(8, 3, 16384)


def test_less_than_half_of_all_combinations_are_tried():
    machine = Machine()
    search(machine).run()
    assert len(set(machine.tried)) < FULL_PRODUCT / 2


def test_the_search_begins_with_the_defaults():
    machine = Machine()
    search(machine).run()
    assert machine.tried[0] == DEFAULTS


@pytest.mark.parametrize("seed", range(20))
def test_noise_of_three_percent_does_not_hide_a_gain_of_a_third(seed):
    found = search(Machine(noise=0.03, drift=0.01, seed=seed)).run()
    assert bottleneck(found) >= 0.9 * 240e3


def test_if_no_setting_matters_the_search_mostly_keeps_the_defaults():
    kept = [search(Machine(flat, noise=0.05, drift=0.02, seed=seed)).run() == DEFAULTS for seed in range(100)]
    # A choice by luck is still checked on the second load.
    assert sum(kept) >= 90


def test_the_choice_was_measured_on_at_least_two_servers():
    for seed in range(20):
        machine = Machine(noise=0.05, drift=0.03, seed=seed)
        found = search(machine).run()
        assert found == DEFAULTS or machine.tried.count(found) >= 2


def test_a_gain_that_a_second_start_does_not_confirm_is_not_chosen():
    machine = Machine(flat)
    lucky = DEFAULTS.with_value("replicas", 2)
    machine.speed = lambda candidate: 200e3 if candidate == lucky and machine.tried.count(lucky) == 1 else 100e3
    assert search(machine).run() == DEFAULTS
    assert machine.tried.count(lucky) == 2


def test_a_candidate_that_does_not_start_is_a_row_and_ends_that_direction():
    def out_of_memory(candidate):
        return "CUDA out of memory" if candidate.replicas > 1 else None

    machine = Machine(failing=out_of_memory)
    done = search(machine)
    found = done.run()
    assert found.replicas == 1
    assert bottleneck(found) == pytest.approx(110e3)
    failed = [trial for trial in done.ledger.trials if trial.failure]
    assert {trial.failure for trial in failed} == {"CUDA out of memory"}
    assert all(candidate.replicas < 3 for candidate in machine.tried)


def test_defaults_that_do_not_start_are_replaced_by_a_candidate_that_does():
    machine = Machine(failing=lambda c: "CUDA out of memory" if c.max_batch_tokens > 8192 else None)
    found = search(machine).run()
    assert found.max_batch_tokens == 8192
    assert bottleneck(found) == 240e3


def test_if_nothing_starts_the_search_ends_without_a_working_candidate():
    machine = Machine(failing=lambda candidate: "no GPU")
    done = search(machine)
    found = done.run()
    assert not done.ledger.works(found)
    assert len(machine.tried) <= 1 + 2 * 3


def test_a_best_that_fails_when_repeated_is_dropped_for_the_next_best():
    machine = Machine(lambda candidate: 100e3 * candidate.replicas)
    flaky = DEFAULTS.with_value("replicas", 3)
    machine.failing = lambda c: "a python process died" if c == flaky and machine.tried.count(flaky) == 2 else None
    space = Space((2,), (1, 2, 3), (16384,))
    assert search(machine, space=space).run() == DEFAULTS.with_value("replicas", 2)


def test_when_time_is_over_only_confirmed_gains_count():
    machine = Machine()
    done = search(machine, trials=2)
    assert done.run() == DEFAULTS
    assert done.ran_out
    assert len(machine.tried) == 2


def test_the_first_trial_is_made_whatever_the_time():
    machine = Machine()
    assert search(machine, trials=0).run() == DEFAULTS
    assert machine.tried == [DEFAULTS]


def test_an_error_of_a_measurement_ends_the_search_and_the_ledger_keeps_the_rest():
    machine = Machine()

    def measure(candidate):
        if len(machine.tried) == 3:
            raise KeyboardInterrupt
        return machine(candidate)

    done = Search(SPACE, DEFAULTS, measure, lambda: True, TrialLedger())
    with pytest.raises(KeyboardInterrupt):
        done.run()
    assert len(done.ledger.trials) == 3


def test_a_setting_with_one_value_stays():
    space = Space((1, 2, 4, 8), (2,), (16384,))
    machine = Machine()
    assert search(machine, space.nearest(DEFAULTS), space).run() == Candidate(8, 2, 16384)
    assert {candidate.replicas for candidate in machine.tried} == {2}


def test_several_loads_count_alike():
    machine = Machine(flat, loads=("short", "long"))

    def measure(candidate):
        trial = machine(candidate)
        # Twice as fast on one load and a third as fast on the other is slower overall.
        factors = {"short": 1, "long": 1} if candidate.replicas == 1 else {"short": 2, "long": 1 / 3}
        runs = {
            load: [type(run)(run.tokens_per_second * factors[load], 1, 1) for run in runs]
            for load, runs in trial.runs.items()
        }
        return type(trial)(candidate, runs, seconds=1)

    assert Search(SPACE, DEFAULTS, measure, lambda: True, TrialLedger()).run() == DEFAULTS


def test_the_number_of_untried_candidates_shrinks():
    machine = Machine(flat)
    done = search(machine)
    assert done.untried() == 1 + 2 + 1 + 2
    done.run()
    assert done.untried() == 0
