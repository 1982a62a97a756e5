"""Counters and latencies, as Prometheus shows them."""

import grpc
import pytest
from prometheus_client import CollectorRegistry
from tests.fakes.data_plane import data_plane

from tritonembed_manager.router.data.metrics import BOUNDS, Meter, Tally, WorkerMetrics
from tritonembed_manager.router.interfaces import DispatchError

OK, INVALID, CANCELLED = grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.CANCELLED


def test_latencies_go_into_their_buckets():
    tally = Tally()
    for seconds in (0.0001, 0.0005, 0.0021, 1000.0):
        tally.add(OK, seconds)
    assert BOUNDS[0] == pytest.approx(0.0005)
    assert [tally.buckets[place] for place in (0, 5, len(BOUNDS))] == [2, 1, 1]


def test_a_caller_that_goes_away_is_no_error():
    tally = Tally()
    for code in (OK, INVALID, CANCELLED):
        tally.add(code, 0.1)
    assert (tally.requests, tally.errors) == (3, 1)


async def test_requests_refused_under_overload_have_no_latency():
    async with data_plane(1, max_in_flight=1) as plane:
        plane.fakes[0].latency = 0.05
        (task,) = plane.start()
        await plane.fakes[0].wait_inside(1)
        for _ in range(20):
            with pytest.raises(DispatchError):
                await plane.infer()
        await task
        total = plane.dispatcher.meter.collect().total
        assert (total.requests, total.errors, sum(total.buckets)) == (21, 20, 1)
        [seconds] = total.latencies
        assert total.seconds == seconds >= 0.05


def test_of_many_latencies_a_sample_is_kept():
    tally = Tally()
    for number in range(5000):
        tally.add(OK, number)
    assert len(tally.latencies) == 500
    assert max(tally.latencies) > 2500


def test_collecting_begins_anew():
    meter = Meter()
    meter.request(OK, 0.1)
    meter.again(charged=True)
    meter.again(charged=False)
    first, second = meter.collect(), meter.collect()
    assert (first.total.requests, first.retries, first.moves) == (1, 1, 1)
    assert (second.total.requests, second.retries, second.moves) == (0, 0, 0)


async def test_prometheus_shows_requests_servers_and_retries():
    registry = CollectorRegistry()
    metrics = WorkerMetrics(registry)
    async with data_plane(2) as plane:
        plane.fakes[0].fail_first = 1
        for _ in range(3):
            await plane.infer()
        plane.fakes[1].hang()
        (task,) = plane.start()
        await plane.fakes[1].wait_inside(1)
        tallies = plane.dispatcher.meter.collect()
        metrics.take(tallies, in_flight=plane.row.admitted(), waiting=0, servers=plane.pool.servers())

        def value(name, **labels):
            return registry.get_sample_value(f"tritonembed_{name}", labels)

        assert value("requests_total", code="OK") == 3
        assert value("request_duration_seconds_count") == 3
        assert value("requests_in_flight") == 1
        assert value("retries_total") == 1
        assert value("server_requests_total", server="0", code="UNAVAILABLE") == 1
        assert value("server_requests_total", server="1", code="OK") == 3
        assert value("server_request_duration_seconds_count", server="1") == 3
        # The fake counts words, and each request has the two words of "a text".
        assert value("server_answered_tokens_total", server="1") == 6
        assert value("server_requests_in_flight", server="1") == 1
        assert value("server_ejections_total", server="0") == 1
        plane.fakes[1].release()
        await task
        metrics.take(plane.dispatcher.meter.collect(), in_flight=0, waiting=0, servers=[])
        assert value("requests_total", code="OK") == 4
        assert value("server_requests_in_flight", server="1") == 0
