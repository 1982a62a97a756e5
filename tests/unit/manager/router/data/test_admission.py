"""Requests that are admitted, and requests that are refused at once."""

import asyncio

import grpc
import pytest
from tests.fakes.clock import Clock
from tests.fakes.data_plane import data_plane

from tritonembed_manager.router.data.admission import AdmissionControl
from tritonembed_manager.router.data.load_table import LoadTable
from tritonembed_manager.router.interfaces import DispatchError


@pytest.fixture
def table():
    made = LoadTable.create(workers=2, slots=2)
    yield made
    made.close()


def refused(admission, size=1):
    with pytest.raises(DispatchError) as caught:
        admission.enter(size)
    return caught.value


def test_all_workers_together_admit_no_more_requests_than_the_bound(table):
    admission, other = AdmissionControl(table.row(0), 3, 1000), AdmissionControl(table.row(1), 3, 1000)
    admission.enter(1)
    other.enter(1)
    other.enter(1)
    error = refused(admission)
    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.retry_after is not None
    other.leave(1)
    admission.enter(1)


def test_no_more_bytes_are_admitted_than_the_bound(table):
    admission = AdmissionControl(table.row(0), 100, 1000)
    admission.enter(600)
    assert refused(admission, 500).code is grpc.StatusCode.RESOURCE_EXHAUSTED
    admission.enter(400)


def test_a_request_larger_than_the_bound_is_admitted_if_it_is_alone(table):
    admission = AdmissionControl(table.row(0), 100, 1000)
    admission.enter(5000)
    refused(admission)
    admission.leave(5000)
    admission.enter(1)


def test_retry_after_follows_the_pace(table):
    clock = Clock(50.0)
    admission = AdmissionControl(table.row(0), 1000, 1 << 30, clock)
    for _ in range(100):
        admission.enter(1)
    assert admission.retry_after() == 1.0  # the pace is unknown yet
    for _ in range(50):
        admission.leave(1)
    clock.now += 1
    # 50 wait, and 50 per second are answered: time for half of them.
    assert admission.retry_after() == pytest.approx(0.5)
    for _ in range(50):
        admission.leave(1)
    clock.now += 0.1
    assert admission.retry_after() == 0.1


async def test_nothing_is_admitted_after_the_drain_began(table):
    admission = AdmissionControl(table.row(0), 3, 1000)
    admission.enter(1)
    table.row(1).admit(1)  # the drain does not wait for another worker's request
    admission.drain()
    error = refused(admission)
    assert (error.code, error.retry_after) == (grpc.StatusCode.UNAVAILABLE, None)
    waiting = asyncio.ensure_future(admission.drained())
    await asyncio.sleep(0)
    assert not waiting.done()
    admission.leave(1)
    await waiting


async def test_beyond_the_bounds_requests_are_refused_and_the_others_answered():
    async with data_plane(2, max_in_flight=8, per_server=3) as plane:
        for fake in plane.fakes:
            fake.hang()
        tasks = plane.start(6)
        for fake in plane.fakes:
            await fake.wait_inside(3)
        with pytest.raises(DispatchError, match="every server has its maximum of requests") as caught:
            await plane.infer()
        assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert caught.value.retry_after > 0
        for fake in plane.fakes:
            fake.release()
        await asyncio.gather(*tasks)
        await plane.infer()


async def test_requests_of_a_dead_server_wait_for_room_on_another_server():
    async with data_plane(2, per_server=3) as plane:
        for fake in plane.fakes:
            fake.hang()
        tasks = plane.start(6)
        for fake in plane.fakes:
            await fake.wait_inside(3)
        await plane.fakes[0].crash()
        while plane.pool.waiting < 3:
            await asyncio.sleep(0)
        plane.fakes[1].release()
        await asyncio.gather(*tasks)
        assert len(plane.fakes[1].requests) == 6
