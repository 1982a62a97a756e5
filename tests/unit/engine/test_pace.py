"""The executor's pace, and estimates from it. Time passes only when a test changes the clock."""

import pytest
from tests.fakes.clock import Clock

from tritonembed_engine.batching import FRESH_SECONDS, LEAST_SLICE_TOKENS, SLICE_SECONDS, Pace
from tritonembed_engine.errors import DeadlineUnreachable


@pytest.fixture
def clock() -> Clock:
    return Clock(100.0)


@pytest.fixture
def pace(clock: Clock) -> Pace:
    return Pace(clock)


def run(pace: Pace, clock: Clock, tokens: int, seconds: float, budget: int = 1000) -> None:
    """A batch that begins now and takes `seconds`."""
    started = clock.now
    clock.now += seconds
    pace.batch_done(tokens, budget, started)


def test_nothing_is_known_or_refused_before_a_batch(pace: Pace) -> None:
    assert pace.tokens_per_second is None
    assert pace.seconds(10) is None
    assert pace.refusal(10**9, 0.001) is None
    assert pace.slice_tokens() == LEAST_SLICE_TOKENS


def test_the_last_pace_is_remembered_for_the_load(pace: Pace, clock: Clock) -> None:
    assert pace.last_seconds(10**9) == 0.0
    run(pace, clock, 1000, 2.0)
    clock.now += 10 * FRESH_SECONDS
    assert pace.seconds(5000) is None
    assert pace.last_seconds(5000) == 10.0


def test_a_full_batch_is_a_measurement(pace: Pace, clock: Clock) -> None:
    run(pace, clock, 1000, 2.0)
    assert pace.tokens_per_second == 500.0
    assert pace.seconds(5000) == 10.0


def test_a_batch_of_few_tokens_is_no_measurement(pace: Pace, clock: Clock) -> None:
    run(pace, clock, 10, 1.0)
    assert pace.tokens_per_second is None
    run(pace, clock, 1000, 1.0)
    run(pace, clock, 10, 1.0)
    assert pace.tokens_per_second == 1000.0


def test_a_faster_batch_counts_at_once_and_a_slower_one_in_part(pace: Pace, clock: Clock) -> None:
    run(pace, clock, 1000, 1.0)
    run(pace, clock, 1000, 0.5)
    assert pace.tokens_per_second == 2000.0
    run(pace, clock, 1000, 1.0)
    assert pace.tokens_per_second == pytest.approx(1800.0)
    for _ in range(40):
        run(pace, clock, 1000, 1.0)
    assert pace.tokens_per_second == pytest.approx(1000.0, rel=0.01)


def test_time_that_two_batches_share_counts_once(pace: Pace, clock: Clock) -> None:
    # Both were launched at 100. The first is done at 101, the second at 102.
    clock.now = 101.0
    pace.batch_done(1000, 1000, 100.0)
    clock.now = 102.0
    pace.batch_done(1000, 1000, 100.0)
    assert pace.tokens_per_second == 1000.0


def test_a_batch_without_time_is_ignored(pace: Pace, clock: Clock) -> None:
    pace.batch_done(1000, 1000, clock.now)
    assert pace.tokens_per_second is None


def test_an_old_measurement_refuses_nothing_but_still_sizes_batches(pace: Pace, clock: Clock) -> None:
    run(pace, clock, 1000, 1.0)
    clock.now += FRESH_SECONDS
    assert pace.refusal(100_000, 1.0) is not None
    clock.now += 0.1
    assert pace.refusal(100_000, 1.0) is None
    assert pace.slice_tokens() == int(1000 * SLICE_SECONDS)


def test_only_what_clearly_misses_its_deadline_is_refused(pace: Pace, clock: Clock) -> None:
    run(pace, clock, 1000, 1.0)
    assert pace.refusal(14_900, 10.0) is None
    refusal = pace.refusal(15_100, 10.0)
    assert isinstance(refusal, DeadlineUnreachable)
    assert str(refusal) == (
        "it would end after its deadline passed: about 15.1 s of work at 1,000 tokens per second, and 10.0 s are left"
    )


def test_a_deadline_that_has_passed_leaves_0_seconds(pace: Pace, clock: Clock) -> None:
    run(pace, clock, 1000, 1.0)
    assert str(pace.refusal(500, -3.0)).endswith("and 0.0 s are left")
