"""Requests left at the end of a drain fail with the drain's reason, and no longer count as retries or server errors."""

import asyncio

import grpc
from tests.fakes.data_plane import data_plane

from tritonembed_manager.router.data.admission import CUT
from tritonembed_manager.router.interfaces import DispatchError


async def cut(plane, *tasks):
    """Drains without any time. Returns the requests' errors."""
    plane.admission.drain()
    plane.dispatcher.cut()
    ended = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)
    assert {type(error) for error in ended} == {DispatchError}
    return {(error.code, error.message) for error in ended}


async def in_flight(plane):
    """A request that hangs on the only server."""
    plane.fakes[0].hang()
    [task] = plane.start(1)
    await plane.fakes[0].wait_inside(1)
    return task


async def test_requests_in_flight_fail_with_the_reason_and_count_neither_as_retries_nor_as_server_errors():
    async with data_plane(2) as plane:
        plane.fakes[0].hang()
        tasks = plane.start(3)
        await plane.fakes[0].wait_inside(3)
        assert await cut(plane, *tasks) == {(grpc.StatusCode.UNAVAILABLE, CUT)}
        tallies = plane.dispatcher.meter.collect()
        assert (tallies.retries, tallies.moves) == (0, 0)
        assert tallies.total.codes == {grpc.StatusCode.UNAVAILABLE: 3}
        assert tallies.servers["0"].errors == 0
        assert not plane.fakes[1].requests


async def test_a_request_that_failed_on_three_servers_before_fails_with_the_drains_reason(short_verdict):
    async with data_plane(4) as plane:
        for fake in plane.fakes[:3]:
            fake.fail_first = 1
        plane.fakes[3].hang()
        [task] = plane.start(1)
        await plane.fakes[3].wait_inside(1)
        assert await cut(plane, task) == {(grpc.StatusCode.UNAVAILABLE, CUT)}


async def test_a_request_that_waits_for_a_server_fails_with_the_reason():
    async with data_plane(1) as plane:
        plane.pool.update([])
        [task] = plane.start(1)
        while not len(plane.pool.waiters):
            await asyncio.sleep(0)
        assert await cut(plane, task) == {(grpc.StatusCode.UNAVAILABLE, CUT)}


async def test_a_request_on_a_server_that_has_left_the_list_fails_with_the_reason():
    async with data_plane(1) as plane:
        task = await in_flight(plane)
        plane.pool.update([])
        assert await cut(plane, task) == {(grpc.StatusCode.UNAVAILABLE, CUT)}


async def test_a_request_that_is_answered_in_time_is_not_cut():
    async with data_plane(1) as plane:
        task = await in_flight(plane)
        plane.admission.drain()
        plane.fakes[0].release()
        await task
        plane.dispatcher.cut()
