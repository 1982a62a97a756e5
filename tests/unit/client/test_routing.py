"""Choice, ejection, failover and the retry budget, on a clock that the test advances."""

import grpc
import pytest
from tests.fakes.clock import Clock

from tritonembed._errors import error_from_status
from tritonembed._routing import LONGEST_EJECTION, Router, is_broken

Code = grpc.StatusCode
BROKEN = error_from_status(Code.UNAVAILABLE, "Socket closed")
OVERLOADED = error_from_status(Code.UNAVAILABLE, "Exceeds maximum queue size")
EXPIRED = error_from_status(Code.DEADLINE_EXCEEDED, None)
BAD = error_from_status(Code.INVALID_ARGUMENT, "too long")


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def router(clock):
    return Router(["a:1", "b:1"], "round_robin", clock)


def chosen(router, count):
    """The servers of `count` requests in sequence, each answered."""
    keys = []
    for _ in range(count):
        attempt = router.begin(1)
        keys.append(attempt.upstream.key)
        router.answered(attempt)
    return keys


def begin_at(router, server):
    """An attempt at this server, of a request that was at all others."""
    return router.begin(1, [other for other in router.upstreams if other is not server])


def break_one(router, server, error=BROKEN):
    """A request fails on this server. Returns whether it is retried."""
    return router.failed(begin_at(router, server), error, [server])


def test_requests_are_spread_by_the_policy(router):
    assert sorted(chosen(router, 10)) == ["a:1"] * 5 + ["b:1"] * 5


def test_the_least_loaded_server_is_the_one_with_the_fewest_bytes_outstanding():
    router = Router(["a:1", "b:1"], "least_loaded")
    long = router.begin(1000)
    short = [router.begin(100) for _ in range(9)]
    assert {attempt.upstream for attempt in short} == set(router.upstreams) - {long.upstream}
    for attempt in (long, *short):
        router.answered(attempt)
    assert [server.load for server in router.upstreams] == [0, 0]


def test_another_policy_is_a_value_error():
    with pytest.raises(ValueError, match="least_loaded"):
        Router(["a:1"], "best")


@pytest.mark.parametrize("error", [BROKEN, OVERLOADED, EXPIRED, BAD])
def test_the_load_is_zero_again_after_every_failure(router, error):
    attempts = [router.begin(7) for _ in range(20)]
    for attempt in attempts[:5]:
        router.dropped(attempt)
    for attempt in attempts[5:]:
        router.failed(attempt, error, [attempt.upstream])
    assert [(server.load) for server in router.upstreams] == [0, 0]


def test_a_request_fails_over_to_each_other_server_once(router):
    first = router.begin(1)
    assert router.failed(first, BROKEN, [first.upstream])
    second = router.begin(1, [first.upstream])
    assert second.upstream is not first.upstream
    assert not router.failed(second, BROKEN, [first.upstream, second.upstream])


@pytest.mark.parametrize("error", [OVERLOADED, EXPIRED, BAD])
def test_only_a_broken_server_is_a_reason_for_failover(router, error):
    assert not break_one(router, router.upstreams[0], error)


@pytest.mark.parametrize("error", [BROKEN, OVERLOADED])
def test_a_failed_server_is_ejected_for_a_growing_time_and_then_tried_by_one_request(router, clock, error):
    a, _ = router.upstreams
    for pause in (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, LONGEST_EJECTION):
        break_one(router, a, error)
        clock.now += pause - 0.01
        assert chosen(router, 5) == ["b:1"] * 5
        clock.now += 0.02
        # One request tries the server. Until that is answered, no other request follows.
        attempts = [router.begin(1) for _ in range(5)]
        assert [attempt.upstream for attempt in attempts].count(a) == 1
        for attempt in attempts:
            router.dropped(attempt)
    assert "a:1" in chosen(router, 2)
    assert chosen(router, 4).count("a:1") == 2
    break_one(router, a, error)
    clock.now += 0.26
    assert "a:1" in chosen(router, 2)  # an answer in between reset the time


def test_an_answer_from_before_the_break_does_not_end_an_ejection(router):
    a, _ = router.upstreams
    before = begin_at(router, a)
    break_one(router, a)
    router.answered(before)
    assert chosen(router, 5) == ["b:1"] * 5


def test_any_answer_ends_an_ejection_even_an_error(router, clock):
    a, _ = router.upstreams
    break_one(router, a)
    clock.now += 0.26
    break_one(router, a, BAD)
    assert chosen(router, 4).count("a:1") == 2


def test_if_all_servers_failed_all_are_tried(router):
    for server in router.upstreams:
        break_one(router, server)
    attempts = [router.begin(1) for _ in range(4)]
    assert {attempt.upstream for attempt in attempts} == set(router.upstreams)


def test_a_server_that_comes_back_is_not_stampeded(clock):
    router = Router(["a:1", "b:1"], "least_loaded", clock)
    a, b = router.upstreams
    break_one(router, a)
    held = [router.begin(10) for _ in range(8)]
    clock.now += 0.26
    held += [router.begin(10) for _ in range(8)]
    assert [attempt.upstream for attempt in held].count(a) == 1
    router.answered(next(attempt for attempt in held if attempt.upstream is a))
    later = [router.begin(10) for _ in range(30)]
    # First as much as the other server has, then half each.
    assert [attempt.upstream for attempt in later[:15]].count(a) == 15
    assert abs(a.load - b.load) <= 10


def test_retries_are_a_fifth_of_the_requests_and_three_at_least(clock):
    router = Router(["a:1", "b:1"], "round_robin", clock)
    a, _ = router.upstreams

    def breaks():
        router.answered(begin_at(router, a))  # The answer ends the ejection, so that the next failure is a new break.
        return break_one(router, a)

    assert [breaks() for _ in range(4)] == [True, True, True, False]
    clock.now += 11
    for _ in range(50):
        router.answered(router.begin(1))
    assert sum(breaks() for _ in range(40)) == 10


def test_the_first_failure_on_each_server_is_retried_whatever_the_budget():
    router = Router([f"{name}:1" for name in "abcdefgh"], "random")
    tried = []
    attempt = router.begin(1)
    for _ in range(7):
        tried.append(attempt.upstream)
        assert router.failed(attempt, BROKEN, tried)
        attempt = router.begin(1, tried)
    router.answered(attempt)


def test_failover_of_requests_in_flight_and_trying_an_ejected_server_cost_no_retry(router, clock):
    a, b = router.upstreams
    for server in (a, b):
        break_one(router, server)
        router.answered(begin_at(router, server))
    assert break_one(router, a)  # the third and last retry
    router.answered(begin_at(router, a))
    in_flight = [begin_at(router, a) for _ in range(64)]
    assert not router.failed(in_flight[0], BROKEN, [a])
    assert all(router.failed(attempt, BROKEN, [a]) for attempt in in_flight[1:])
    clock.now += 0.26
    assert break_one(router, a)


def test_nothing_is_retried_once_the_client_is_closed(router):
    router.close()
    assert not break_one(router, router.upstreams[0])


@pytest.mark.parametrize(
    ("code", "details", "expected"),
    [
        (Code.UNAVAILABLE, "failed to connect to all addresses", True),
        (Code.UNAVAILABLE, "Request for unknown model: 'embedding' has no available versions", True),
        (Code.UNAVAILABLE, "in ensemble 'embedding', Exceeds maximum queue size", False),
        (Code.UNAVAILABLE, "Request timeout expired", False),
        (Code.RESOURCE_EXHAUSTED, "every server has its maximum of requests", False),
        (Code.CANCELLED, "", True),
        (Code.INTERNAL, "in ensemble 'embedding', Stub process 'embedder_0_0' is not healthy.", True),
        (Code.INTERNAL, "the batch failed on the device", False),
        (Code.INTERNAL, "Received RST_STREAM with error code 2", True),
        (Code.UNKNOWN, "Stream removed", True),
        (Code.DEADLINE_EXCEEDED, "Deadline Exceeded", False),
        (Code.INVALID_ARGUMENT, "connection reset", False),
        (Code.NOT_FOUND, "unknown model", False),
        (Code.NOT_FOUND, "Request for unknown model: 'embedding' has no available versions", True),
        (Code.UNAUTHENTICATED, "", False),
    ],
)
def test_a_failure_is_broken_if_another_server_can_answer_instead(code, details, expected):
    assert is_broken(error_from_status(code, details)) is expected
