"""A query of death kills two servers at most. Other requests on these servers are not lost."""

import asyncio

import grpc
import pytest
from tests.fakes.data_plane import data_plane
from tests.fakes.triton import infer_request, texts

from tritonembed_manager.router.data.envelope import read_envelope
from tritonembed_manager.router.data.failover import KEPT_S, MOST_KEPT, Quarantine, digest
from tritonembed_manager.router.interfaces import DispatchError, ServerState

POISON = b"a text that no server survives"


def arm(plane):
    """Every fake dies a moment after it receives POISON, with all its requests, and restarts."""
    deaths, restarts = [], []
    for place, fake in enumerate(plane.fakes):
        plain = fake._infer

        async def infer(request, context, place=place, fake=fake, plain=plain):
            if texts(request) == [POISON]:
                await asyncio.sleep(0.02)
                deaths.append(place)
                restarts.append(asyncio.ensure_future(restart(plane, place)))
                await asyncio.sleep(10)
            fake.latency = 0.05
            return await plain(request, context)

        fake._infer = infer
    return deaths


async def restart(plane, place):
    view = plane.views[place]
    await plane.fakes[place].crash()
    plane.report(place, ServerState.UNHEALTHY, deaths=view.deaths + 1)
    await asyncio.sleep(0.05)
    await plane.fakes[place].come_back()
    plane.report(place, restarts=view.restarts + 1)


@pytest.mark.parametrize("servers", [1, 2, 4])
async def test_a_query_of_death_kills_two_servers_and_no_other_request(servers):
    async with data_plane(servers, timeout=60) as plane:
        deaths = arm(plane)
        tasks = plane.start(20)
        poison = asyncio.ensure_future(plane.infer(POISON))
        tasks += plane.start(20)
        with pytest.raises(DispatchError) as refusal:
            await poison
        assert refusal.value.code is grpc.StatusCode.INTERNAL
        assert "two servers died" in refusal.value.message
        await asyncio.gather(*tasks)
        assert len(deaths) == 2
        assert [servers for _, servers in plane.quarantined] == [[str(place) for place in deaths]]
        # The same request with another timeout is refused at once. A request with another text is not.
        for _ in range(3):
            with pytest.raises(DispatchError, match="two servers died"):
                await plane.infer(POISON, timeout=5_000_000)
        await plane.infer(POISON + b".")
        assert len(deaths) == 2


async def test_requests_whose_server_died_are_retried_one_at_a_time():
    async with data_plane(2, timeout=60) as plane:
        plane.fakes[0].hang()
        tasks = plane.start(12)
        await plane.fakes[0].wait_inside(12)
        most = 0
        plane.fakes[1].latency = 0.01
        plain = plane.fakes[1]._infer

        async def infer(request, context):
            nonlocal most
            most = max(most, plane.fakes[1].inside)
            return await plain(request, context)

        plane.fakes[1]._infer = infer
        plane.fakes[0].release()
        await restart(plane, 0)
        await asyncio.gather(*tasks)
        assert most == 1


async def test_the_end_of_a_drain_ends_requests_that_wait_for_their_turn():
    async with data_plane(1, timeout=60) as plane:
        plane.fakes[0].hang()
        tasks = plane.start(12, timeout=60)
        await plane.fakes[0].wait_inside(12)
        await plane.fakes[0].crash()
        while plane.pool.waiting < 12:
            await asyncio.sleep(0.01)
        plane.dispatcher.cut()
        ended = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)
        assert {error.code for error in ended} == {grpc.StatusCode.UNAVAILABLE}


async def test_broken_connections_are_no_deaths():
    async with data_plane(3, first_pause=0.001, timeout=60) as plane:
        for fake in plane.fakes[:2]:
            fake.fail_first = 1

        def clear(key, _reason):
            asyncio.get_running_loop().call_later(0.05, plane.pool.cleared, key)

        plane.pool._suspect = clear
        await plane.infer()
        assert [len(fake.requests) for fake in plane.fakes] == [1, 1, 1]
        assert not plane.quarantined


async def test_all_workers_share_a_servers_lane():
    async with data_plane(1, workers=2) as plane:
        server = plane.pool.get("0")
        assert server.take_lane()
        assert not server.take_lane()
        server.leave_lane()
        assert server.take_lane()
        server.leave_lane()


def test_the_digest_leaves_out_id_and_timeout():
    def name(request_id="", **parameters):
        made = infer_request(POISON, **parameters)
        made.id = request_id
        message = made.SerializeToString()
        return digest(message, read_envelope(message).own)

    assert name() == name("7", timeout=5) == name("8", timeout=70_000_000)
    assert name() != name(truncate="END")


def test_a_quarantine_ends_and_is_bounded():
    now = 0.0
    quarantine = Quarantine(lambda: now)
    message = infer_request(POISON).SerializeToString()
    own = read_envelope(message).own
    assert not quarantine.holds(message, own)
    quarantine.add(digest(message, own))
    assert quarantine.holds(message, own)
    other = Quarantine(lambda: now)
    for name, until in quarantine.entries().items():
        other.add(name, until)
    now = KEPT_S - 1
    assert quarantine.holds(message, own)
    assert other.holds(message, own)
    now = KEPT_S + 1
    assert not quarantine.holds(message, own)
    assert len(quarantine) == 0
    for number in range(MOST_KEPT + 10):
        quarantine.add(f"1:{number}")
    assert len(quarantine) == MOST_KEPT
