"""What is left when the time to drain is over ends with that reason, and is counted as nothing else."""

import asyncio

import grpc
from tests.fakes.data_plane import data_plane

from tritonembed_manager.serve.admission import CUT
from tritonembed_manager.serve.model import DispatchError


async def cut(plane, *tasks):
    """Drain with no time for it; what the requests end with."""
    plane.admission.drain()
    plane.dispatcher.cut()
    ended = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)
    assert {type(error) for error in ended} == {DispatchError}
    return {(error.code, error.message) for error in ended}


async def in_flight(plane):
    """A request that hangs at the only server."""
    plane.fakes[0].hang()
    [task] = plane.start(1)
    await plane.fakes[0].wait_inside(1)
    return task


async def test_what_is_in_flight_hears_why_and_counts_neither_as_sent_again_nor_as_a_failure_of_its_server():
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


async def test_what_was_at_three_servers_before_hears_of_the_drain_and_not_of_them():
    async with data_plane(4) as plane:
        for fake in plane.fakes[:3]:
            fake.fail_first = 1
        plane.fakes[3].hang()
        [task] = plane.start(1)
        await plane.fakes[3].wait_inside(1)
        assert await cut(plane, task) == {(grpc.StatusCode.UNAVAILABLE, CUT)}


async def test_what_waits_for_a_server_hears_why():
    async with data_plane(1) as plane:
        plane.pool.update([])
        [task] = plane.start(1)
        while not len(plane.pool.waiters):
            await asyncio.sleep(0)
        assert await cut(plane, task) == {(grpc.StatusCode.UNAVAILABLE, CUT)}


async def test_what_is_at_a_server_that_has_left_the_list_hears_why():
    async with data_plane(1) as plane:
        task = await in_flight(plane)
        plane.pool.update([])
        assert await cut(plane, task) == {(grpc.StatusCode.UNAVAILABLE, CUT)}


async def test_what_is_answered_in_time_is_not_cut():
    async with data_plane(1) as plane:
        task = await in_flight(plane)
        plane.admission.drain()
        plane.fakes[0].release()
        await task
        plane.dispatcher.cut()
