"""A server that passes only its health checks is ejected, and does not harm requests on other servers."""

import asyncio

import grpc
import pytest
from tests.fakes.clock import Clock
from tests.fakes.data_plane import data_plane

from tritonembed_manager.router.data import outliers
from tritonembed_manager.router.data.outliers import IN_A_ROW, LEAST_REQUESTS, Outlier, is_stalled, reason_to_eject
from tritonembed_manager.router.interfaces import DispatchError


def outlier(now=1000.0, answered=0, failed=0, seconds=0.01):
    made = Outlier(now)
    for _ in range(answered):
        made.answered(now, seconds)
    for _ in range(failed):
        made.failed(now)
    return made


def test_failures_in_a_row_eject_but_never_the_last_server_that_answers():
    bad, good = outlier(failed=IN_A_ROW), outlier()
    assert reason_to_eject(bad, [good], 1000.0) == "5 requests in a row failed"
    assert reason_to_eject(outlier(failed=IN_A_ROW - 1), [good], 1000.0) is None
    assert reason_to_eject(bad, [outlier(failed=IN_A_ROW)], 1000.0) is None
    assert reason_to_eject(bad, [], 1000.0) is None


def test_a_small_share_of_success_ejects_while_other_servers_answer():
    bad = outlier(answered=4, failed=4)
    for _ in range(12):
        bad.failed(1000.0)
        bad.failed(1000.0)
        bad.answered(1000.0, 0.01)
    bad.failed(1000.0)
    assert bad.in_a_row < IN_A_ROW
    assert reason_to_eject(bad, [outlier(answered=100)], 1000.0) == "29 of 45 requests failed"
    assert reason_to_eject(bad, [outlier(answered=LEAST_REQUESTS - 1)], 1000.0) is None
    assert reason_to_eject(bad, [outlier(answered=80, failed=1), outlier(answered=1, failed=20)], 1000.0) is not None
    worse = outlier(answered=80, failed=20)
    worse.answered(1000.0, 0.01)
    assert reason_to_eject(bad, [worse], 1000.0) is None
    assert reason_to_eject(bad, [outlier(answered=100)], 1011.0) is None


def test_each_ejection_is_longer_until_the_server_was_healthy_for_a_while():
    made = outlier()
    now = 1000.0
    pauses = []
    for _ in range(6):
        pauses.append(made.eject(now))
        now += pauses[-1] + 1
    assert pauses == [5, 10, 20, 40, 60, 60]
    made.recovered()
    assert made.eject(now + 61) == 5


def test_a_server_is_stalled_only_while_others_answer():
    silent, good = outlier(now=1000.0), outlier(now=1000.0)
    good.answered(1002.0, 0.5)
    assert not is_stalled(silent, None, [good], 1010.0)
    assert not is_stalled(silent, 1001.0, [good], 1003.9)
    assert is_stalled(silent, 1001.0, [good], 1004.1)
    assert not is_stalled(silent, 1002.5, [good], 1010.0)  # no other server has answered since
    good.answered(1009.0, 2.0)
    assert not is_stalled(silent, 1002.5, [good], 1010.0)  # the others are slow too
    assert is_stalled(silent, 1002.5, [good], 1013.0)


async def all_answered(tasks):
    results = await asyncio.gather(*tasks, return_exceptions=True)
    return [result for result in results if isinstance(result, DispatchError)]


@pytest.mark.parametrize(
    "code",
    [grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.DATA_LOSS],
)
async def test_a_server_that_answers_all_but_its_checks_with_odd_codes_is_ejected(code):
    async with data_plane(2, first_pause=0.001) as plane:
        plane.fakes[0].fail_first, plane.fakes[0].failure = 10_000, (code, "no reason")
        lost = 0
        for _ in range(50):
            lost += len(await all_answered(plane.start(2)))
            plane.pool.cleared("0")  # each check finds the server healthy
        # Odd codes are passed on to the caller. CANCELLED is not an answer, so the request is retried.
        # Two requests can be at the server when it is ejected.
        assert lost in ([0] if code is grpc.StatusCode.CANCELLED else [IN_A_ROW, IN_A_ROW + 1])
        assert len(plane.fakes[0].requests) <= 2 * IN_A_ROW
        assert [key for key, _, _ in plane.ejections] == ["0"]


async def test_a_bad_server_does_not_use_up_the_retry_budget_of_the_others():
    async with data_plane(3, first_pause=0.001) as plane:
        plane.fakes[0].fail_first, plane.fakes[0].failure = 10_000, (grpc.StatusCode.CANCELLED, "no reason")
        for _ in range(20):
            assert not await all_answered(plane.start(1))
            plane.pool.cleared("0")
        plane.fakes[1].fail_first = 1
        plane.policy.prefer = "1"
        assert not await all_answered(plane.start(1))
        assert len(plane.fakes[2].requests) == 1


async def test_requests_in_flight_on_a_stalled_server_fail_over():
    clock = Clock()
    async with data_plane(2, clock=clock, timeout=60) as plane:
        plane.fakes[0].hang()
        stuck = plane.start(30)
        await plane.fakes[0].wait_inside(30)
        plane.policy.prefer = "1"
        await plane.infer()
        clock.now += 2.0
        await plane.infer()
        plane.pool.eject_stalled()
        assert not plane.ejections
        clock.now += 1.5
        await plane.infer()
        plane.pool.eject_stalled()
        assert [(key, seconds) for key, _, seconds in plane.ejections] == [("0", 5.0)]
        assert not await all_answered(stuck)
        assert not plane.quarantined


async def ejection_over(plane, server):
    plane.pool.eject(server, "another worker ejected it", 0.01)
    while server.ejected:
        await asyncio.sleep(0.01)


async def test_after_an_ejection_one_request_tries_the_server_and_is_not_lost(monkeypatch):
    monkeypatch.setattr("tritonembed_manager.router.data.pool.TRIAL_S", 0.1)
    # The next ejection outlasts the test, however slow the machine is.
    monkeypatch.setattr(outliers, "FIRST_EJECTION_S", 60)
    async with data_plane(2, timeout=60) as plane:
        plane.fakes[0].hang()
        server, sent = plane.pool.get("0"), []
        begin = server.begin
        # Not the fake's own count: on a slow machine the trial may be over before its request arrives there.
        monkeypatch.setattr(server, "begin", lambda *what, **more: (sent.append(1), begin(*what, **more))[1])
        await ejection_over(plane, server)
        assert not await all_answered(plane.start(20))
        assert len(sent) == 1
        # The server did not answer, so it is ejected again, for longer.
        assert [(key, seconds) for key, _, seconds in plane.ejections] == [("0", 60)]
        plane.fakes[0].release()


async def test_a_server_that_answers_the_request_that_tries_it_has_recovered():
    async with data_plane(2) as plane:
        await ejection_over(plane, plane.pool.get("0"))
        for _ in range(3):
            await plane.infer()
        assert len(plane.fakes[0].requests) == 3
        assert not plane.ejections
