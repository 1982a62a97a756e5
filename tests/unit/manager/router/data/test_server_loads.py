"""Seconds of work before each server, by the rates that were measured, whoever measured them."""

import asyncio
from collections import Counter

import pytest
from prometheus_client import CollectorRegistry
from tests.fakes.clock import Clock
from tests.fakes.data_plane import data_plane
from tests.fakes.triton import infer_request

from tritonembed_manager.router.data.load_table import LoadTable
from tritonembed_manager.router.data.metrics import WorkerMetrics
from tritonembed_manager.router.data.pool import Loads
from tritonembed_manager.router.interfaces import Caller, ServerState

RATE, SLOW = 1_000_000, 100_000


def measure(server, clock, rate=RATE):
    """Let the server's window see it answer `rate` bytes in a second while requests wait."""
    server.window.look(0, waiting=True)
    clock.now += 1
    server.window.look(rate, waiting=True)


def counted(plane):
    loads, queued = Loads(), Counter()
    plane.dispatcher.count_load(loads, queued)
    return loads, queued


async def test_a_server_has_the_work_that_was_sent_to_it_and_its_share_of_what_waits():
    clock = Clock(100.0)
    async with data_plane(2, clock=clock) as plane:
        first, second = plane.pool.servers()
        for fake in plane.fakes:
            fake.hang()
        tasks = plane.start(3)
        await plane.fakes[0].wait_inside(3)
        work = len(infer_request(b"a text").SerializeToString())
        # Nobody has measured a rate.
        assert counted(plane)[0] == Loads({"0": 0.0, "1": 0.0}, 0.0)
        measure(first, clock)
        tasks += plane.start(1)
        await plane.fakes[0].wait_inside(4)
        loads, _ = counted(plane)
        assert loads.seconds == pytest.approx({"0": 4 * work / RATE, "1": 0.0})
        assert loads.came == pytest.approx(work / RATE)
        assert counted(plane)[0].came == 0.0
        # A server without a rate is taken for one like the others.
        plane.policy.prefer = "1"
        tasks += plane.start(1)
        await plane.fakes[1].wait_inside(1)
        assert counted(plane)[0].seconds == pytest.approx({"0": 4 * work / RATE, "1": work / RATE})
        measure(second, clock, RATE // 4)
        loads, _ = counted(plane)
        assert loads.seconds == pytest.approx({"0": 4 * work / RATE, "1": 4 * work / RATE})
        for fake in plane.fakes:
            fake.release()
        for task in tasks:
            await task
        assert counted(plane)[0].seconds == {"0": 0.0, "1": 0.0}


async def test_what_waits_in_the_manager_counts_at_the_servers_that_it_waits_for():
    clock = Clock(100.0)
    async with data_plane(3, clock=clock) as plane:
        for fake in plane.fakes:
            fake.hang()
        for server in plane.pool.servers():
            measure(server, clock, SLOW)
        plane.report(2, ServerState.DRAINING)
        rows = [b"word " * 40] * 1000
        size = len(infer_request(*rows).SerializeToString())
        callers = [Caller("acme", is_tenant=True)] * 6 + [Caller("10.0.0.1:1234")]
        tasks = [asyncio.ensure_future(plane.infer(*rows, caller=each, timeout=600)) for each in callers]
        while plane.pool.waiting != 7:
            await asyncio.sleep(0)
        for fake in plane.fakes[:2]:
            # Two parts of a large request are in flight.
            await fake.wait_inside(2)
        loads, queued = counted(plane)
        # A part has a head of its own.
        assert sum(loads.seconds.values()) == pytest.approx(7 * size / SLOW, rel=0.01)
        assert loads.seconds["0"] == pytest.approx(loads.seconds["1"], rel=0.1)
        assert loads.seconds["2"] == 0
        assert loads.came == pytest.approx(7 * size / SLOW)
        assert queued == {(2, "acme"): 6, (2, ""): 1}
        for fake in plane.fakes:
            fake.release()
        for task in tasks:
            await task
        assert counted(plane) == (Loads({"0": 0.0, "1": 0.0, "2": 0.0}, 0.0), {})


def test_workers_share_the_rates_that_they_measured():
    table = LoadTable.create(2, 4)
    rows = [table.row(0), table.row(1)]
    assert table.rate(3) == 0
    rows[1].measured(3, 1234.5)
    assert (table.rate(3), table.rate(2)) == (1234, 0)
    rows[0].measured(3, 2000)
    assert table.rate(3) == 2000
    table.zero(0)
    assert table.rate(3) == 1234
    rows[1].measured(3, 0)
    assert table.rate(3) == 0
    table.close()


def test_prometheus_shows_loads_and_queues_and_forgets_servers_that_left():
    registry = CollectorRegistry()
    metrics = WorkerMetrics(registry)

    def value(name, **labels):
        return registry.get_sample_value(f"tritonembed_{name}", labels)

    metrics.take_loads(Loads({"a": 2.5, "b": 1.0}, 7.0), {(1, "acme"): 3})
    metrics.take_loads(Loads({"a": 0.5}, 1.0), {(2, ""): 4})
    assert value("load", server="a") == 0.5
    assert value("load", server="b") == 0
    assert value("work_seconds_total") == 8.0
    assert value("requests_queued", priority="1", tenant="acme") == 0
    assert value("requests_queued", priority="2", tenant="") == 4
