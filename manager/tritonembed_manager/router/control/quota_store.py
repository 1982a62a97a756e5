"""Quotas over several managers, kept in Redis (--quota-store).

The path of a request never waits for Redis. Four times per second the parent sends what its workers have charged, and
receives what all managers together have used, which it writes into the quota table. So a tenant can exceed a quota by
what all managers admit in a quarter of a second. That is a debt: the tenant's next requests have to wait longer. If
Redis does not answer, each manager keeps to its share: the quota divided by the number of managers that were present.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from tritonembed_manager.errors import StartError
from tritonembed_manager.router.data.quotas import Quotas, Spent
from tritonembed_manager.router.data.tenants import QuotaLimits, Tenant
from tritonembed_manager.router.log import log, warn

OPTION = "--quota-store"
EVERY_S = 0.25
_PATIENCE_S = 1.0
_MANAGERS_KEY, _TENANT_KEY = "tritonembed:managers", "tritonembed:quota:"
_PRESENT_S = 5
"""Seconds of silence after which a manager counts as gone."""
_PRESENT = """
local time = redis.call('TIME')
redis.call('ZADD', KEYS[1], time[1], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', time[1] - ARGV[2] - 1)
redis.call('EXPIRE', KEYS[1], 60)
return redis.call('ZCARD', KEYS[1])
"""
"""Returns the number of managers. KEYS: their set. ARGV: this manager, _PRESENT_S."""
_CHARGE = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local was = redis.call('HMGET', KEYS[1], 'at', 'requests', 'tokens')
local passed = math.max(0, now - (tonumber(was[1]) or now))
local left, empty = {}, 1
for i = 1, 2 do
  local limit, more = tonumber(ARGV[i]), tonumber(ARGV[i + 2])
  local used = math.max(0, (tonumber(was[i + 1]) or 0) - passed * limit / 60)
  left[i] = limit > 0 and string.format('%.6f', math.max(0, used + more)) or '0'
  if limit > 0 then empty = math.max(empty, left[i] / limit * 60) end
end
redis.call('HSET', KEYS[1], 'at', string.format('%.6f', now), 'requests', left[1], 'tokens', left[2])
redis.call('EXPIRE', KEYS[1], math.ceil(empty) + 1)
return left
"""
"""Returns the requests and tokens that are used. KEYS: the tenant's. ARGV: both limits (0 for none), both charges."""


def open_store(url: str) -> Any:
    """A client of Redis, not connected yet. Raises StartError. Neither this error nor a later line has the URL."""
    try:
        from redis.asyncio import Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
    except ImportError:
        raise StartError(f"{OPTION} needs the package redis: pip install 'tritonembed[redis]'") from None
    try:
        return Redis.from_url(
            url,
            socket_timeout=_PATIENCE_S,
            socket_connect_timeout=_PATIENCE_S,
            # One retry, at once: a connection that was closed meanwhile is no outage.
            retry=Retry(NoBackoff(), 1),
            decode_responses=True,
        )
    except (ValueError, TypeError):
        raise StartError(f"{OPTION} must be redis://host:port/db, rediss://host:port/db or unix://path") from None


class QuotaStore:
    """client: as `open_store` returns it. tenants: returns those of the file. quotas: over the table of the workers."""

    def __init__(self, client: Any, quotas: Quotas, tenants: Callable[[], Sequence[Tenant]]) -> None:
        self._client = client
        self._quotas = quotas
        self._tenants = tenants
        self._sent: dict[str, Spent] = {}
        self._name = uuid.uuid4().hex
        self._managers = 1
        self._complaint = ""

    @property
    def warnings(self) -> list[str]:
        """A line for the status if Redis does not answer."""
        return [self._complaint] if self._complaint else []

    async def keep(self, pause: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Synchronise until cancelled."""
        try:
            while True:
                await self.sync()
                await pause(EVERY_S)
        finally:
            await self._client.aclose()

    async def sync(self) -> None:
        """Send and receive once. If Redis does not answer, use the local share."""
        from redis.exceptions import RedisError

        try:
            await asyncio.wait_for(self._exchange(), 2 * _PATIENCE_S)
        except (RedisError, OSError, asyncio.TimeoutError) as error:
            self._lost(type(error).__name__)
            return
        self._quotas.table.shares = 1
        if self._complaint:
            self._complaint = ""
            log("quota_store_back", f"{OPTION} answers again: quotas are counted together")

    async def _exchange(self) -> None:
        pipeline = self._client.pipeline(transaction=False)
        pipeline.eval(_PRESENT, 1, _MANAGERS_KEY, self._name, _PRESENT_S)
        sent: list[tuple[QuotaLimits, Spent]] = []
        for limits in (limits for tenant in self._tenants() for limits in tenant.all_limits):
            unsent = self._quotas.unsent(limits, self._sent.get(limits.key, Spent()))
            if unsent is None:
                continue
            spent, charge = unsent
            sent.append((limits, spent))
            per_minute = (limits.requests_per_minute or 0, limits.tokens_per_minute or 0)
            pipeline.eval(_CHARGE, 1, _TENANT_KEY + limits.key, *per_minute, charge.requests, charge.tokens)
        managers, *used = await pipeline.execute()
        self._managers = max(1, int(managers))
        for (limits, spent), (requests, tokens) in zip(sent, used, strict=True):
            self._sent[limits.key] = spent
            self._quotas.adopt(limits, spent, Spent(float(requests), float(tokens)))

    def _lost(self, why: str) -> None:
        self._quotas.table.shares = self._managers
        if not self._complaint:
            share = "all" if self._managers == 1 else f"1/{self._managers}"
            self._complaint = f"{OPTION} does not answer ({why}): tenants have {share} of their quotas at this manager"
            warn("quota_store_lost", self._complaint)
