"""Quotas of several managers together, over a real redis-server."""

import asyncio
import time

import pytest
from tests.fakes.redis_server import RedisServer
from tests.fakes.tenants import tenant

from tritonembed_manager.errors import StartError
from tritonembed_manager.router.control.quota_store import QuotaStore, open_store
from tritonembed_manager.router.data.quotas import Quotas, QuotaTable, Spent
from tritonembed_manager.router.interfaces import DispatchError


@pytest.fixture(scope="module")
def redis():
    with RedisServer() as server:
        yield server


@pytest.fixture(autouse=True)
async def nothing_kept(redis):
    client = open_store(redis.url)
    await client.flushall()
    await client.aclose()


class Manager:
    """The table of one manager's workers, and its store."""

    def __init__(self, url, *tenants):
        self.quotas = Quotas(QuotaTable.create(1, slots=4), 0)
        self.client = open_store(url)
        self.store = QuotaStore(self.client, self.quotas, lambda: tenants)

    async def sync(self):
        await self.store.sync()

    def admit(self, who, most=1000, tokens=1):
        """The number of requests that were admitted."""
        for count in range(most):
            try:
                charge = self.quotas.enter(who, tokens)
            except DispatchError:
                return count
            self.quotas.leave(charge, answered=True, tokens=tokens, requests=1, charged=tokens)
        return most

    def used(self, who):
        """Requests and tokens."""
        requests, tokens = self.quotas.buckets(who)
        return requests and requests.used, tokens and tokens.used


@pytest.fixture
async def two(redis):
    """Two managers, and their tenant: 600 requests per minute, so ten come back per second."""
    who = tenant(requests_per_minute=600, tokens_per_minute=6000)
    managers = [Manager(redis.url, who) for _ in range(2)]
    yield (*managers, who)
    for manager in managers:
        await manager.client.aclose()


async def test_managers_share_what_is_used(two):
    first, second, who = two
    began = time.monotonic()
    assert first.admit(who, 400, tokens=3) == 400
    await first.sync()
    await second.sync()
    # Nothing was used at the second, which does not ask for such tenants.
    assert second.used(who)[0] == 0
    assert second.admit(who, 50) == 50
    await second.sync()
    back = (time.monotonic() - began) * 10
    requests, tokens = second.used(who)
    assert 450 - back <= requests <= 450
    assert 1250 - 10 * back <= tokens <= 1250
    more = second.admit(who)
    assert 150 <= more <= 151 + (time.monotonic() - began) * 10
    await second.sync()
    await first.sync()
    assert first.admit(who) <= (time.monotonic() - began) * 10


async def test_what_is_charged_during_the_exchange_is_not_lost(two):
    first, _, who = two
    first.admit(who, 100)
    spent, charge = first.quotas.unsent(who, Spent())
    assert charge.requests == pytest.approx(100, abs=20)
    first.admit(who, 30)
    first.quotas.adopt(who, spent, charge)
    assert first.used(who)[0] == pytest.approx(charge.requests + 30, abs=1)


async def test_a_refund_reaches_the_others(two):
    first, second, who = two
    charge = first.quotas.enter(who, 5000)
    await first.sync()
    first.quotas.leave(charge, answered=False, tokens=0, requests=0, charged=0)
    await first.sync()
    second.admit(who, 1)
    await second.sync()
    assert second.used(who)[1] < 100


async def test_without_redis_each_manager_has_its_share(redis, two, caplog):
    first, second, who = two
    for manager in (first, second, first):
        await manager.sync()
    redis.kill()
    try:
        for _ in range(3):
            await first.sync()
        assert first.quotas.table.shares == 2
        [warning] = first.store.warnings
        assert warning.startswith("--quota-store does not answer (")
        assert warning.endswith("): tenants have 1/2 of their quotas at this manager")
        assert [record.getMessage() for record in caplog.records].count(warning) == 1
        assert str(redis.port) not in caplog.text
        began = time.monotonic()
        admitted = first.admit(who)
        assert 300 <= admitted <= 301 + (time.monotonic() - began) * 10
    finally:
        redis.start()
    await first.sync()
    assert (first.quotas.table.shares, first.store.warnings) == (1, [])
    # What was used meanwhile counts at the others, too.
    second.admit(who, 1)
    await second.sync()
    assert second.used(who)[0] > 200


async def test_a_debt_that_was_waited_off_without_redis_is_not_claimed_later(redis, two):
    first, second, who = two
    await first.sync()
    redis.kill()
    now = time.monotonic()
    first.quotas._clock = lambda: now
    try:
        for _ in range(5):
            assert first.admit(who) > 0
            await first.sync()
            now += 120
    finally:
        redis.start()
    await first.sync()
    second.admit(who, 1)
    await second.sync()
    assert second.used(who)[0] < 10


async def test_a_redis_that_hangs_holds_nothing_up_for_long(redis, two):
    first, _, who = two
    await first.sync()
    redis.hang(True)
    try:
        await asyncio.wait_for(first.sync(), 30)
        assert first.store.warnings
        assert first.admit(who, 10) == 10
    finally:
        redis.hang(False)
    while first.store.warnings:
        await first.sync()


async def test_a_manager_that_is_there_no_more_is_not_counted(redis, two):
    first, second, _ = two
    await second.sync()
    client = open_store(redis.url)
    await client.zadd("tritonembed:managers", {"a manager of yesterday": 1.0})
    await client.aclose()
    await first.sync()
    assert first.store._managers == 2


async def test_keys_in_redis_go_by_themselves(redis, two):
    first, _, who = two
    first.admit(who, 10)
    await first.sync()
    client = open_store(redis.url)
    keys = await client.keys("*")
    assert sorted(keys) == ["tritonembed:managers", f"tritonembed:quota:{who.name}"]
    for key in keys:
        assert 0 < await client.ttl(key) <= 60
    await client.aclose()


@pytest.mark.parametrize("url", ["", "localhost:6379", "http://host", "redis://host:port/0"])
def test_a_wrong_url_is_one_line_without_it(url):
    with pytest.raises(StartError) as caught:
        open_store(url)
    assert str(caught.value) == "--quota-store must be redis://host:port/db, rediss://host:port/db or unix://path"


async def test_a_refused_password_is_named_and_not_shown(redis, two, caplog):
    first, _, who = two
    client = open_store(f"redis://user:secret@127.0.0.1:{redis.port}/0")
    store = QuotaStore(client, first.quotas, lambda: [who])
    await store.sync()
    assert store.warnings[0].startswith("--quota-store does not answer (AuthenticationError)")
    assert "secret" not in caplog.text + repr(store)
    await client.aclose()
