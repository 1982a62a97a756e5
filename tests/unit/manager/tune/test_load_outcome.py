"""Results of a load: arrivals, shares of processes, rates, percentiles."""

import itertools
import random

import numpy as np
import pytest

from tritonembed_manager.tune.loadgen.clients import poisson_arrivals
from tritonembed_manager.tune.loadgen.load import Load, LoadResult, Samples, ThreadUse

CLOSED = Load(7, None, 20, None, 1.0, 60.0, 3)


def part(finished: list[float], latencies: list[float], **more: object) -> Samples:
    return Samples(np.array(finished), np.array(latencies), np.zeros(len(finished)), **more)  # type: ignore[arg-type]


def test_arrivals_are_a_poisson_process_of_the_rate() -> None:
    moments = np.array(list(itertools.islice(poisson_arrivals(50.0, random.Random(0)), 20_000)))
    gaps = np.diff(moments)
    assert gaps.min() > 0
    assert gaps.mean() == pytest.approx(0.02, rel=0.03)
    # An exponential distribution's standard deviation equals its mean.
    assert gaps.std() == pytest.approx(0.02, rel=0.05)


def test_arrivals_are_the_same_for_the_same_seed() -> None:
    first, second = (list(itertools.islice(poisson_arrivals(5, random.Random(9)), 5)) for _ in range(2))
    assert first == second


def test_the_shares_of_all_processes_add_up_to_the_load() -> None:
    shares = CLOSED.shares(3)
    assert [share.concurrency for share in shares] == [3, 2, 2]
    assert [share.requests for share in shares] == [7, 7, 6]
    assert len({share.seed for share in shares}) == 3
    open_loop = Load(None, 30.0, None, 2.0, 1.0, 60.0, 3).shares(3)
    assert sum(share.rate or 0 for share in open_loop) == pytest.approx(30)
    assert {share.concurrency for share in open_loop} == {None}


def test_a_load_of_a_number_of_requests_lasts_until_the_last_answer() -> None:
    outcome = LoadResult.of(part([11.0, 14.0], [0.5, 1.0], tokens=90), 10.0, 99.0, CLOSED)
    assert outcome.seconds == 4.0
    assert outcome.requests_per_second == 0.5
    assert outcome.tokens_per_second == 22.5


def test_a_load_with_a_duration_lasts_that_long_however_early_the_last_answer() -> None:
    load = Load(7, None, None, 10.0, 1.0, 60.0, 3)
    assert LoadResult.of(part([11.0], [0.5]), 10.0, 20.0, load).seconds == 10.0


def test_an_open_loop_lasts_until_every_request_is_answered() -> None:
    load = Load(None, 30.0, None, 10.0, 1.0, 60.0, 3)
    assert LoadResult.of(part([11.0, 23.0], [0.5, 5.0]), 10.0, 20.0, load).seconds == 13.0
    assert LoadResult.of(part([11.0], [0.5]), 10.0, 20.0, load).seconds == 10.0


def test_nothing_answered_is_no_division_by_zero() -> None:
    outcome = LoadResult.of(part([], []), 10.0, 10.0, CLOSED)
    assert (outcome.requests, outcome.requests_per_second) == (0, 0.0)
    assert np.isnan(outcome.latency_ms(50))


def test_an_outcome_is_meaningful_if_any_request_ended() -> None:
    nothing = part([], [])
    assert not LoadResult(nothing, 1.0).is_telling
    for some in (part([1.0], [0.1]), part([], [], errors={"UNAVAILABLE": 1}), part([], [], wrong=1)):
        assert LoadResult(some, 1.0).is_telling


def test_percentiles_are_milliseconds_and_100_is_the_maximum() -> None:
    outcome = LoadResult(part([1.0] * 100, [n / 1000 for n in range(1, 101)]), 1.0)
    assert outcome.latency_ms(50) == pytest.approx(50.5)
    assert outcome.latency_ms(100) == pytest.approx(100)


@pytest.mark.parametrize(("busy", "saturated"), [(0.95, True), (0.5, False)])
def test_one_saturated_client_process_marks_the_client_as_saturated(busy: float, saturated: bool) -> None:
    uses = (ThreadUse(1.0, 0.1), ThreadUse(2.0, busy))
    outcome = LoadResult(part([1.0], [0.1], use=uses), 1.0)
    assert outcome.is_client_saturated is saturated
    assert outcome.client_cpu_seconds == 3.0
