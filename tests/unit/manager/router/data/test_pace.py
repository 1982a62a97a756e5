"""The time after which a caller should retry, against overloads whose true pace is known."""

import heapq
import random

import pytest
from tests.fakes.clock import Clock

from tritonembed_manager.router.data.admission import UNKNOWN_S, AnswerPace

MEASURED_AFTER_S = 4.2
"""From the first refusal on; until then the pace of this overload is not known."""


def ratios(pace, clock, *, capacity, room, arrivals, seconds, rng):
    """Of each estimate to the true time until half of the requests in flight are answered.

    A service that answers `capacity` requests per second, one after the other, and has `room` for requests in flight.
    """
    began, first = clock.now, None
    queue, due = 0, [(clock.now + rng.expovariate(arrivals), "arrival")]
    found = []
    while clock.now - began < seconds:
        clock.now, what = heapq.heappop(due)
        if what == "arrival":
            heapq.heappush(due, (clock.now + rng.expovariate(arrivals), "arrival"))
            if queue == room:
                first = clock.now if first is None else first
                estimate = pace.seconds_for(queue / 2)
                if clock.now - first > MEASURED_AFTER_S:
                    found.append(estimate * capacity / (queue / 2))
                continue
            queue += 1
            if queue == 1:
                heapq.heappush(due, (clock.now + rng.expovariate(capacity), "answer"))
        else:
            queue -= 1
            pace.left()
            if queue:
                heapq.heappush(due, (clock.now + rng.expovariate(capacity), "answer"))
    return found


@pytest.mark.parametrize(("capacity", "room"), [(2000, 4096), (300, 512), (40, 64)])
def test_the_estimate_is_true_within_a_factor_of_two_also_after_quiet_hours(capacity, room):
    clock, rng = Clock(0.0), random.Random(7)
    pace = AnswerPace(clock)
    # As long as requests are answered as fast as they come, nothing is refused.
    for _ in range(1000):
        clock.now += 3.6
        pace.left()
    load = {"capacity": capacity, "room": room, "rng": rng, "seconds": room / capacity + 8}
    found = ratios(pace, clock, arrivals=3 * capacity, **load)
    assert len(found) > 100
    assert min(found) > 0.5
    assert max(found) < 2
    # An hour later the service is five times as slow.
    clock.now += 3600
    slower = load | {"capacity": capacity / 5, "seconds": room / capacity + 20}
    found = ratios(pace, clock, arrivals=3 * capacity, **slower)
    assert sorted(found)[len(found) // 100] > 0.5
    assert sorted(found)[-len(found) // 100] < 2


def test_until_a_pace_is_known_the_answer_is_a_second():
    clock = Clock(0.0)
    pace = AnswerPace(clock)
    for _ in range(1000):
        pace.left()
    assert pace.seconds_for(100) == UNKNOWN_S


def test_the_pace_of_the_last_overload_holds_at_the_begin_of_the_next():
    clock = Clock(0.0)
    pace = AnswerPace(clock)
    pace.seconds_for(1)
    for _ in range(100):
        pace.left()
    clock.now += 1
    assert pace.seconds_for(50) == pytest.approx(0.5)
    clock.now += 3600
    assert pace.seconds_for(50) == pytest.approx(0.5)


def test_a_service_that_answers_nothing_is_waited_for_longer_and_longer_up_to_a_minute():
    clock = Clock(0.0)
    pace = AnswerPace(clock)
    found = []
    for _ in range(70):
        found.append(pace.seconds_for(4))
        clock.now += 1
    assert found[:4] == [UNKNOWN_S] * 4
    assert found[4:16] == sorted(found[4:16])
    assert found[15] == 60
