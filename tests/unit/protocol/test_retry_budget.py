"""The number of retries, on a clock that the test advances."""

import pytest
from tests.fakes.clock import Clock

from tritonembed_protocol.policies import RetryBudget


@pytest.fixture
def clock():
    return Clock()


def taken(budget, wanted=100):
    return sum(budget.take() for _ in range(wanted))


def test_a_few_retries_are_always_allowed(clock):
    assert taken(RetryBudget(clock=clock)) == 3


def test_a_share_of_the_windows_requests_may_be_retried(clock):
    budget = RetryBudget(clock=clock)
    for _ in range(200):
        budget.request()
        clock.now += 9.0 / 200
    assert taken(budget) == 40


def test_old_requests_do_not_count(clock):
    budget = RetryBudget(clock=clock)
    for _ in range(200):
        budget.request()
    clock.now += 11
    assert taken(budget) == 3


def test_spent_retries_come_back_after_the_window(clock):
    budget = RetryBudget(clock=clock)
    assert taken(budget) == 3
    clock.now += 8
    assert taken(budget) == 0
    clock.now += 3
    assert taken(budget) == 3
    clock.now += 1_000_000
    assert taken(budget) == 3
