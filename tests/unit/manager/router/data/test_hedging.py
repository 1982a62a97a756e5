"""Late interactive requests, which are sent to an idle server, too."""

import asyncio

import grpc
import pytest
from tests.fakes.data_plane import data_plane
from tests.fakes.triton import infer_response, vector

from tritonembed_manager.router.data import hedging
from tritonembed_manager.router.data.hedging import LEAST, Budget
from tritonembed_manager.router.interfaces import DispatchError

FIRST = {"priority": 1}
AT_ONCE, LATER = 0.001, 0.2


@pytest.fixture(autouse=True)
def _saved(monkeypatch):
    """There is a budget from the start."""
    monkeypatch.setattr(Budget, "__init__", lambda self: setattr(self, "_saved", hedging.MOST_SAVED))


def hedges(plane):
    return dict(plane.dispatcher.meter.collect().hedges)


async def test_a_late_request_is_answered_by_an_idle_server_and_the_first_is_cancelled():
    async with data_plane(2, hedge_after=AT_ONCE) as plane:
        plane.fakes[0].hang()
        await plane.infer(**FIRST)
        assert [len(fake.requests) for fake in plane.fakes] == [1, 1]
        await plane.fakes[0].wait_inside(0)
        assert plane.fakes[0].cancelled == 1
        tallies = plane.dispatcher.meter.collect()
        assert dict(tallies.hedges) == {"won": 1}
        assert tallies.total.codes == {grpc.StatusCode.OK: 1}
        assert tallies.servers["0"].codes == {grpc.StatusCode.CANCELLED: 1}
        assert tallies.servers["1"].codes == {grpc.StatusCode.OK: 1}
        assert not plane.suspects


async def test_if_the_first_server_answers_first_the_second_is_cancelled():
    async with data_plane(2, hedge_after=AT_ONCE) as plane:
        for fake in plane.fakes:
            fake.hang()
        [asked] = plane.start(**FIRST)
        await plane.fakes[1].wait_inside(1)
        plane.fakes[0].release()
        await asked
        await plane.fakes[1].wait_inside(0)
        assert plane.fakes[1].cancelled == 1
        assert hedges(plane) == {"lost": 1}


async def test_a_request_that_is_not_late_or_not_interactive_is_sent_once():
    async with data_plane(2, hedge_after=60.0) as plane:
        await plane.infer(**FIRST)
        assert [len(fake.requests) for fake in plane.fakes] == [1, 0]
    async with data_plane(2, hedge_after=AT_ONCE) as plane:
        plane.fakes[0].latency = LATER
        await plane.infer()
        await plane.infer(priority=2)
        assert [len(fake.requests) for fake in plane.fakes] == [2, 0]


async def test_without_the_option_nothing_is_hedged():
    async with data_plane(2) as plane:
        plane.fakes[0].latency = LATER
        await plane.infer(**FIRST)
        assert [len(fake.requests) for fake in plane.fakes] == [1, 0]


async def test_a_server_that_has_something_to_do_gets_no_second_try():
    async with data_plane(2, hedge_after=AT_ONCE) as plane:
        plane.policy.prefer = "1"
        plane.fakes[1].hang()
        [other] = plane.start()
        await plane.fakes[1].wait_inside(1)
        plane.policy.prefer = "0"
        plane.fakes[0].latency = LATER
        await plane.infer(**FIRST)
        assert [len(fake.requests) for fake in plane.fakes] == [1, 1]
        plane.fakes[1].release()
        await other


async def test_a_second_try_that_fails_leaves_the_first_alone():
    async with data_plane(2, hedge_after=AT_ONCE) as plane:
        plane.fakes[0].hang()
        plane.fakes[1].fail_first = 1
        [asked] = plane.start(**FIRST)
        await plane.fakes[0].wait_inside(1)
        while not plane.dispatcher.meter.tallies.hedges:
            await asyncio.sleep(0.001)
        plane.fakes[0].release()
        await asked
        assert hedges(plane) == {"lost": 1}


async def test_a_first_try_that_fails_goes_to_another_server_as_always():
    async with data_plane(3, hedge_after=AT_ONCE) as plane:
        plane.fakes[0].latency, plane.fakes[0].fail_first = LATER, 1
        plane.fakes[1].hang()
        [asked] = plane.start(**FIRST)
        await plane.fakes[1].wait_inside(1)
        await plane.fakes[1].wait_inside(0)
        plane.fakes[1].release()
        await asked
        assert plane.suspects[0][0] == "0"


async def test_a_caller_that_goes_away_ends_both():
    async with data_plane(2, hedge_after=AT_ONCE) as plane:
        for fake in plane.fakes:
            fake.hang()
        [asked] = plane.start(**FIRST)
        for fake in plane.fakes:
            await fake.wait_inside(1)
        asked.cancel()
        for fake in plane.fakes:
            await fake.wait_inside(0)
        with pytest.raises(asyncio.CancelledError):
            await asked


async def test_both_time_out_together():
    async with data_plane(2, hedge_after=AT_ONCE) as plane:
        for fake in plane.fakes:
            fake.hang()
        with pytest.raises(DispatchError) as caught:
            await plane.infer(timeout=0.5, **FIRST)
        assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_wrong_answer_of_the_second_server_is_no_answer():
    async with data_plane(2, hedge_after=AT_ONCE) as plane:

        async def infer(request, context):
            return infer_response([vector(b"a text")] * 2, [2, 2])

        plane.fakes[0].latency, plane.fakes[1]._infer = 60, infer
        with pytest.raises(DispatchError):
            await plane.infer(timeout=1, **FIRST)
        assert plane.suspects[0][0] == "1"


async def test_a_request_for_a_space_gets_no_second_try_in_another():
    async with data_plane(2, hedge_after=AT_ONCE) as plane:
        for number, space in enumerate(("aa-float32", "aa-16bit")):
            plane.fakes[number].space = space
            plane.report(number, space=space)
        plane.fakes[0].latency = LATER
        response = await plane.infer(embedding_space="aa-float32", **FIRST)
        assert response.parameters["embedding_space"].string_param == "aa-float32"
        assert [len(fake.requests) for fake in plane.fakes] == [1, 0]


async def test_only_answers_count_for_what_is_late():
    async with data_plane(2, hedge_after=60.0) as plane:
        plane.fakes[0].hang()
        [asked] = plane.start(**FIRST)
        await plane.fakes[0].wait_inside(1)
        asked.cancel()
        await plane.fakes[0].wait_inside(0)
        assert not plane.dispatcher._hedging._latencies
        plane.fakes[0].release()
        await plane.infer(**FIRST)
        assert len(plane.dispatcher._hedging._latencies) == 1


def test_the_budget_is_a_twentieth_of_the_requests(monkeypatch):
    monkeypatch.undo()
    budget = Budget()
    taken = 0
    for _ in range(1000):
        budget.request()
        taken += budget.take()
    assert taken == 50
    for _ in range(10_000):
        budget.request()
    assert sum(budget.take() for _ in range(100)) == hedging.MOST_SAVED


async def test_late_is_what_is_slower_than_95_of_100_interactive_requests():
    async with data_plane(2, hedge_after="p95") as plane:
        late = plane.dispatcher._hedging
        for _ in range(LEAST):
            assert late.delay() is None
            await plane.infer(**FIRST)
        assert 0 < late.delay() < 10
        for milliseconds in range(1, 1001):
            late._count(milliseconds / 1e3)
        assert late.delay() == pytest.approx(0.95, abs=0.01)
