"""Servers that can get a request, by the parent's reports and the requests' outcomes."""

import asyncio

import pytest
from tests.fakes.data_plane import view

from tritonembed_manager.router.data.load_table import LoadTable
from tritonembed_manager.router.data.pool import UpstreamPool
from tritonembed_manager.router.interfaces import ServerState

ADDRESS = "127.0.0.1:1"
STATES = dict(zip("rusdfx", ("ready", "unhealthy", "starting", "draining", "failed", "refused"), strict=True))


class Pool(UpstreamPool):
    """A pool whose states are letters: r(eady), u(nhealthy), s(tarting), d(raining), f(ailed), x (refused)."""

    def report(self, states, **changes):
        self.update(
            [view(str(slot), slot, ADDRESS, ServerState(STATES[state]), **changes) for slot, state in enumerate(states)]
        )

    def keys(self, tried=()):
        return "".join(server.key for server in self.candidates(tried))


@pytest.fixture
async def pool():
    table = LoadTable.create(1, 8)
    suspects = []
    made = Pool(table.row(0), 2, lambda *what: suspects.append(what), first_pause=60)
    made.suspects, made.row = suspects, table.row(0)
    yield made
    await made.close()
    table.close()


async def test_ready_servers_get_requests(pool):
    pool.report("rusdfxr")
    assert pool.keys() == "06"


async def test_if_no_server_is_ready_those_that_answered_last_get_requests(pool):
    pool.report("rrsdfx")
    pool.report("uusdfx")
    assert pool.keys() == "01"
    pool.broke(pool.get("0"), "it broke", move=False)
    assert pool.keys() == "1"
    pool.report("ur")
    assert pool.keys() == "1"
    pool.report("ru")
    pool.broke(pool.get("0"), "it broke", move=False)
    assert pool.keys() == ""  # the parent's check is about to confirm or clear this


async def test_a_restarting_server_gets_no_requests_before_it_was_ready(pool):
    pool.report("rr")
    pool.report("uu", restarts=1)
    assert pool.keys() == ""
    pool.report("su", restarts=1)
    assert pool.keys() == ""
    pool.report("ru", restarts=1)
    pool.report("uu", restarts=1)
    assert pool.keys() == "0"


async def test_a_suspect_gets_no_requests_until_the_parent_reported_it_unhealthy_and_ready_again(pool):
    pool.report("rr")
    pool.broke(pool.get("0"), "it broke", move=False)
    assert pool.suspects == [("0", "it broke")]
    pool.report("rr")
    assert pool.keys() == "1"
    pool.report("ur")
    pool.report("rr")
    assert pool.keys() == "01"


async def test_a_suspicion_ends_with_a_successful_check(pool):
    pool.report("r")
    before = pool.get("0").forward
    pool.broke(pool.get("0"), "it broke", move=False)
    waiting = asyncio.ensure_future(pool.waiters.wait(20, ()))
    await asyncio.sleep(0)
    pool.cleared("no longer listed")
    assert pool.keys() == ""
    pool.cleared("0")
    assert pool.keys() == "0"
    await asyncio.wait_for(waiting, 10)
    assert pool.get("0").forward is not before  # the old connection may wait before it reconnects
    await before.closed()


async def test_a_suspicion_ends_by_itself():
    table = LoadTable.create(1, 8)
    pool = Pool(table.row(0), 2, lambda *what: None, first_pause=0.001)
    pool.report("r")
    pool.broke(pool.get("0"), "it broke", move=True)
    assert pool.keys() == ""
    await asyncio.wait_for(pool.waiters.wait(20, ()), 10)
    assert pool.keys() == "0"
    await pool.close()
    table.close()


async def test_full_servers_are_no_candidates(pool):
    pool.report("rr")
    pool.row.begin(0, 5)
    pool.row.begin(0, 5)
    assert pool.keys() == "1"
    assert len(pool.usable()) == 2
    pool.row.end(0, 5)
    assert pool.keys() == "01"


async def test_a_request_does_not_return_to_a_server_unless_that_was_restarted(pool):
    pool.report("rr")
    tried = [pool.get("0").incarnation]
    assert pool.keys(tried) == "1"
    pool.report("ur")
    pool.report("rr")
    assert pool.keys(tried) == "1"
    pool.report("rr", restarts=1)
    assert pool.keys(tried) == "01"


async def test_a_request_does_not_wait_once_every_server_was_tried(pool):
    pool.report("rrfx")
    first, second = pool.get("0").incarnation, pool.get("1").incarnation
    assert not pool.exhausted([])
    assert not pool.exhausted([first])
    assert pool.exhausted([first, second])
    pool.broke(pool.get("1"), "it broke", move=False)
    assert not pool.exhausted([first, second])  # the parent may restart it


async def test_the_load_is_per_replica(pool):
    pool.update([view("0", 0, ADDRESS), view("1", 1, ADDRESS, replicas=4)])
    for slot in (0, 1):
        pool.row.begin(slot, 100)
    assert [server.load for server in pool.candidates()] == [100, 25]
    for slot in (0, 1):
        pool.row.end(slot, 100)


async def test_a_server_of_another_slot_is_another_server(pool):
    pool.update([view("0", 0, ADDRESS)])
    before = pool.get("0")
    pool.update([view("0", 3, ADDRESS)])
    assert pool.get("0") is not before
    await before.forward.closed()


async def test_a_free_place_is_given_to_the_first_request_that_can_use_it(pool):
    pool.report("rr")
    first, second = (pool.get(key).incarnation for key in "01")
    told = []

    async def wait(name, refused):
        await pool.waiters.wait(20, refused)
        told.append(name)

    tasks = [asyncio.ensure_future(wait(*waiter)) for waiter in (("a", [first]), ("b", []), ("c", [second]), ("d", []))]
    await asyncio.sleep(0)
    pool.waiters.wake_one(first)
    tasks[2].cancel()
    await asyncio.gather(tasks[1], tasks[2], return_exceptions=True)
    assert told == ["b"]
    pool.waiters.wake_one(second)
    tasks[0].cancel()  # it is woken but cancelled, so the next request gets the place
    await asyncio.gather(tasks[0], tasks[3], return_exceptions=True)
    assert told == ["b", "d"]
    assert not len(pool.waiters)
