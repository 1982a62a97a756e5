"""Who can be sent a request, as the parent's word and the requests' fate have it."""

import asyncio

import pytest
from tests.fakes.data_plane import view

from tritonembed_manager.serve.load_table import LoadTable
from tritonembed_manager.serve.model import ServerState
from tritonembed_manager.serve.pool import ServerPool

ADDRESS = "127.0.0.1:1"
STATES = dict(zip("rusdfx", ("ready", "unhealthy", "starting", "draining", "failed", "refused"), strict=True))


class Pool(ServerPool):
    """With the states of its servers as a word: r(eady), u(nhealthy), s(tarting), d(raining), f(ailed), x (refused)."""

    def say(self, states, **changes):
        self.update(
            [view(str(slot), slot, ADDRESS, ServerState(STATES[state]), **changes) for slot, state in enumerate(states)]
        )

    def keys(self, tried=()):
        return "".join(server.key for server in self.candidates(tried))


@pytest.fixture
async def pool():
    table = LoadTable.create(1, 8)
    suspects = []
    made = Pool(table.row(0), 2, lambda *what: suspects.append(what), suspension=60)
    made.suspects, made.row = suspects, table.row(0)
    yield made
    await made.close()
    table.close()


async def test_the_ready_ones_get_requests(pool):
    pool.say("rusdfxr")
    assert pool.keys() == "06"


async def test_if_all_look_bad_those_that_answered_last_count(pool):
    pool.say("rrsdfx")
    pool.say("uusdfx")
    assert pool.keys() == "01"
    pool.broke(pool.get("0"), "it broke", move=False)
    assert pool.keys() == "1"
    pool.say("ur")
    assert pool.keys() == "1"
    pool.say("ru")
    pool.broke(pool.get("0"), "it broke", move=False)
    assert pool.keys() == ""  # the parent will say in a moment whether that is true


async def test_a_server_that_starts_again_does_not_count_before_it_was_ready(pool):
    pool.say("rr")
    pool.say("uu", restarts=1)
    assert pool.keys() == ""
    pool.say("su", restarts=1)
    assert pool.keys() == ""
    pool.say("ru", restarts=1)
    pool.say("uu", restarts=1)
    assert pool.keys() == "0"


async def test_a_suspect_is_out_until_the_parent_found_it_bad_and_well_again(pool):
    pool.say("rr")
    pool.broke(pool.get("0"), "it broke", move=False)
    assert pool.suspects == [("0", "it broke")]
    pool.say("rr")
    assert pool.keys() == "1"
    pool.say("ur")
    pool.say("rr")
    assert pool.keys() == "01"


async def test_a_suspicion_ends_when_a_check_found_it_well(pool):
    pool.say("r")
    before = pool.get("0").forward
    pool.broke(pool.get("0"), "it broke", move=False)
    waiting = asyncio.ensure_future(pool.waiters.wait(20, ()))
    await asyncio.sleep(0)
    pool.cleared("no longer listed")
    assert pool.keys() == ""
    pool.cleared("0")
    assert pool.keys() == "0"
    await asyncio.wait_for(waiting, 10)
    assert pool.get("0").forward is not before  # its connection may be waiting before it connects again
    await before.closed()


async def test_a_suspicion_ends_by_itself():
    table = LoadTable.create(1, 8)
    pool = Pool(table.row(0), 2, lambda *what: None, suspension=0.001)
    pool.say("r")
    pool.broke(pool.get("0"), "it broke", move=True)
    assert pool.keys() == ""
    await asyncio.wait_for(pool.waiters.wait(20, ()), 10)
    assert pool.keys() == "0"
    await pool.close()
    table.close()


async def test_full_servers_are_no_candidates(pool):
    pool.say("rr")
    pool.row.begin(0, 5)
    pool.row.begin(0, 5)
    assert pool.keys() == "1"
    assert len(pool.usable()) == 2
    pool.row.end(0, 5)
    assert pool.keys() == "01"


async def test_a_request_does_not_come_back_to_a_server_until_that_was_started_again(pool):
    pool.say("rr")
    tried = [pool.get("0").incarnation]
    assert pool.keys(tried) == "1"
    pool.say("ur")
    pool.say("rr")
    assert pool.keys(tried) == "1"
    pool.say("rr", restarts=1)
    assert pool.keys(tried) == "01"


async def test_waiting_is_useless_once_every_server_was_tried(pool):
    pool.say("rrfx")
    first, second = pool.get("0").incarnation, pool.get("1").incarnation
    assert not pool.exhausted([])
    assert not pool.exhausted([first])
    assert pool.exhausted([first, second])
    pool.broke(pool.get("1"), "it broke", move=False)
    assert not pool.exhausted([first, second])  # the parent may yet start it again


async def test_the_load_is_that_of_one_replica(pool):
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


async def test_a_place_that_is_free_goes_to_the_first_that_can_use_it(pool):
    pool.say("rr")
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
    tasks[0].cancel()  # told, but it goes: the next one gets the place
    await asyncio.gather(tasks[0], tasks[3], return_exceptions=True)
    assert told == ["b", "d"]
    assert not len(pool.waiters)
