"""Quotas of tenants: tokens and requests per minute (token buckets), and requests in flight.

A bucket holds one minute's worth, and fills evenly. The quota table holds the used part, which shrinks with time. A
request is charged with an estimate of its tokens, and with their true number once it is answered. A request that is
larger than the bucket needs a full one.

All workers share the quota table: it is in shared memory, with a row per tenant. A row's lock makes a check and its
booking one step, over all workers. The kernel releases the lock of a process that ends. A process that is stopped
meanwhile keeps it. So a worker that waits too long goes on without the lock, and the row may miss one booking.
"""

import fcntl
import mmap
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple

import grpc

from tritonembed_manager.router.data.tenants import QuotaLimits
from tritonembed_manager.router.data.window import BYTES_PER_TOKEN
from tritonembed_manager.router.interfaces import DispatchError

SLOTS = 4096
"""The most tenants from the start of a manager to its end."""
HEADER, SHARES, STRANGERS = 4, 2, 3
"""Cells before the first row: workers, rows, shares, requests that Envoy refused because no tenant has their key."""
_CELL = 8
USED_REQUESTS, USED_TOKENS, AT = 0, 1, 2
"""Cells of a row: the used part of the quotas, at a time in seconds of the monotonic clock."""
SPENT_REQUESTS, SPENT_TOKENS = 3, 4
"""The total that was ever charged to the quotas."""
ANSWERED, TOKENS, FAILED, OVER_REQUESTS, OVER_TOKENS, OVER_IN_FLIGHT = range(5, 11)
"""Requests, and tokens of the answers; see `Used`."""
FIRST_OWN = 11
"""Cells of a row before those of the workers, which are their requests in flight."""
_PATIENCE_S = 0.02


@dataclass(frozen=True)
class Used:
    """A tenant's use since the start of the manager."""

    answered: int
    tokens: int
    """Tokens of the answers."""
    failed: int
    over_requests: int
    """Refused because of requests per minute; the next two likewise."""
    over_tokens: int
    over_in_flight: int
    in_flight: int
    """Now."""

    @property
    def refused(self) -> int:
        """Because of any limit."""
        return self.over_requests + self.over_tokens + self.over_in_flight


class QuotaTable:
    """float64 cells. The file descriptor was made by `create`, here or in the parent, and stays open."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.size = os.fstat(fd).st_size
        """The table's size in bytes."""
        self._map = mmap.mmap(fd, self.size)
        self.cells = memoryview(self._map).cast("d")
        self.workers, self.slots = int(self.cells[0]), int(self.cells[1])
        self.width = FIRST_OWN + self.workers
        """Cells of a row."""

    @classmethod
    def create(cls, workers: int, slots: int = SLOTS) -> "QuotaTable":
        """A new table of zeros. A child process inherits its `fd` with `pass_fds`."""
        fd = os.memfd_create("tritonembed-quotas")
        os.ftruncate(fd, _CELL * (HEADER + slots * (FIRST_OWN + workers)))
        with mmap.mmap(fd, 0) as memory, memoryview(memory) as raw, raw.cast("d") as cells:
            cells[0], cells[1], cells[SHARES] = workers, slots, 1
        return cls(fd)

    def close(self) -> None:
        """Release memory and descriptor."""
        self.cells.release()
        self._map.close()
        os.close(self.fd)

    @property
    def shares(self) -> float:
        """The number of managers that divide the quotas; 1 for a single manager, or if managers count together."""
        return self.cells[SHARES]

    @shares.setter
    def shares(self, shares: float) -> None:
        self.cells[SHARES] = shares

    @property
    def strangers(self) -> int:
        """Requests that Envoy refused because no tenant has their key."""
        return int(self.cells[STRANGERS])

    def row(self, slot: int) -> int:
        """The index of a tenant's first cell."""
        return HEADER + slot * self.width

    def worker_cell(self, slot: int, worker: int) -> int:
        """The index of the cell with a worker's requests in flight."""
        return self.row(slot) + FIRST_OWN + worker

    def in_flight(self, slot: int) -> int:
        """A tenant's requests in flight, of all workers."""
        first = self.row(slot) + FIRST_OWN
        return int(sum(self.cells[first : first + self.workers]))

    def used(self, slot: int) -> Used:
        """The tenant's use."""
        first = self.row(slot)
        counts = [*self.cells[first + ANSWERED : first + FIRST_OWN], self.in_flight(slot)]
        return Used(*map(int, counts))

    def zero(self, worker: int) -> None:
        """Clear the requests in flight of a worker that has ended."""
        for slot in range(self.slots):
            self.cells[self.worker_cell(slot, worker)] = 0

    @contextmanager
    def locked(self, slot: int) -> Iterator[int]:
        """Hold the row's lock. Yields the index of its first cell."""
        got = self._lock(slot)
        try:
            yield self.row(slot)
        finally:
            if got:
                fcntl.lockf(self.fd, fcntl.LOCK_UN, 1, slot)

    def _lock(self, slot: int) -> bool:
        until = 0.0
        while True:
            with suppress(OSError):
                fcntl.lockf(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, slot)
                return True
            now = time.monotonic()
            until = until or now + _PATIENCE_S
            if now >= until:
                return False
            os.sched_yield()


_MINUTE_S = 60.0
_SOON_S = 1.0
"""When to try again if too many requests are in flight: it is not known when they end."""
OVER_LIMIT = "this tenant's %s; try again later"
IN_FLIGHT, REQUESTS_USED, TOKENS_USED = (
    "%d requests are in flight",
    "%d requests per minute are used up",
    "%d tokens per minute are used up",
)
_LEAST = 1e-6
"""Differences below it come from rounding."""


def estimate(work: int) -> int:
    """Tokens of a request. work: in bytes, as window.py counts them."""
    return max(1, work // BYTES_PER_TOKEN)


@dataclass(frozen=True, slots=True)
class QuotaBucket:
    """limit: per minute. size: less than the limit if several managers divide it. used: the used part of the size."""

    limit: int
    size: float
    used: float

    @property
    def remaining(self) -> int:
        return max(0, int(self.size - self.used + _LEAST))

    @property
    def reset(self) -> float:
        """Seconds until it is full."""
        return self.wait(self.size)

    def wait(self, amount: float) -> float:
        """Seconds until `amount` can be taken, which is at most the size; 0 for now."""
        missing = self.used + min(amount, self.size) - self.size
        return missing * _MINUTE_S / self.size if missing > _LEAST else 0.0


class Spent(NamedTuple):
    """Requests and tokens."""

    requests: float = 0.0
    tokens: float = 0.0


@dataclass(frozen=True, slots=True)
class Charge:
    """The charge for an admitted request."""

    limits: QuotaLimits
    tokens: int


class Quotas:
    """The quotas as one worker counts them, in a table that all workers share. clock: monotonic, also shared."""

    def __init__(self, table: QuotaTable, worker: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.table = table
        self._worker = worker
        self._clock = clock

    def check(self, limits: QuotaLimits) -> None:
        """Raise DispatchError (RESOURCE_EXHAUSTED) if even the smallest request would be refused now."""
        # The lock is taken only for a refusal: an inexact look costs nothing.
        if self._limit(limits, self.buckets(limits), 1) is None:
            return
        with self.table.locked(limits.slot) as row:
            refusal = self._refusal(limits, row, 1)
        if refusal is not None:
            raise refusal

    def enter(self, limits: QuotaLimits, tokens: int) -> Charge:
        """Admit a request of about this many tokens; `leave` must follow. Raises DispatchError (RESOURCE_EXHAUSTED)."""
        with self.table.locked(limits.slot) as row:
            refusal = self._refusal(limits, row, tokens)
            if refusal is not None:
                raise refusal
            self._charge(row, 1, tokens)
            self.table.cells[self.table.worker_cell(limits.slot, self._worker)] += 1
        return Charge(limits, tokens)

    def leave(self, charge: Charge, *, answered: bool, tokens: int, requests: int, charged: int) -> None:
        """The request ended.

        tokens: of its answer. requests, charged: the requests (0 or 1) and tokens that the quotas keep of it.
        """
        cells = self.table.cells
        with self.table.locked(charge.limits.slot) as row:
            self._shrink(charge.limits, row)
            self._charge(row, requests - 1, charged - charge.tokens)
            cells[self.table.worker_cell(charge.limits.slot, self._worker)] -= 1
            cells[row + (ANSWERED if answered else FAILED)] += 1
            cells[row + TOKENS] += tokens

    def unfinished(self, slot: int) -> None:
        """A request of the tenant in a slot ended without an answer, after others admitted it for this worker."""
        with self.table.locked(slot) as row:
            self.table.cells[self.table.worker_cell(slot, self._worker)] -= 1
            self.table.cells[row + FAILED] += 1

    def enter_all(self, limits: Sequence[QuotaLimits], tokens: int) -> list[Charge]:
        """Admit a request under several limits, or under none of them; see `enter`."""
        charges: list[Charge] = []
        try:
            # The tenant's own limits come last, so that a refusal by a model's limits charges them nothing.
            for one in reversed(limits):
                charges.append(self.enter(one, tokens))
        except DispatchError:
            for charge in charges:
                self._take_back(charge)
            raise
        return charges

    def _take_back(self, charge: Charge) -> None:
        """The request was not admitted after all."""
        with self.table.locked(charge.limits.slot) as row:
            self._shrink(charge.limits, row)
            self._charge(row, -1, -charge.tokens)
            self.table.cells[self.table.worker_cell(charge.limits.slot, self._worker)] -= 1

    def unsent(self, limits: QuotaLimits, sent: Spent) -> tuple[Spent, Spent] | None:
        """The total charge, and the part of it that other managers don't know yet; None if nothing is used.

        sent: as returned the last time. A charge that time has paid off is no longer sent.
        """
        cells = self.table.cells
        with self.table.locked(limits.slot) as row:
            self._shrink(limits, row)
            spent = Spent(cells[row + SPENT_REQUESTS], cells[row + SPENT_TOKENS])
            used = Spent(cells[row + USED_REQUESTS], cells[row + USED_TOKENS])
        charge = Spent(min(spent.requests - sent.requests, used.requests), min(spent.tokens - sent.tokens, used.tokens))
        return (spent, charge) if any((*used, *charge)) else None

    def adopt(self, limits: QuotaLimits, spent: Spent, used: Spent) -> None:
        """used: by all managers, when this manager's charges were `spent`. Later charges are added."""
        cells = self.table.cells
        with self.table.locked(limits.slot) as row:
            cells[row + USED_REQUESTS] = max(0.0, used.requests + cells[row + SPENT_REQUESTS] - spent.requests)
            cells[row + USED_TOKENS] = max(0.0, used.tokens + cells[row + SPENT_TOKENS] - spent.tokens)
            cells[row + AT] = self._clock()

    def buckets(self, limits: QuotaLimits) -> tuple[QuotaBucket | None, QuotaBucket | None]:
        """The buckets of requests and of tokens, now; None for no limit."""
        return self._look(limits, self.table.row(limits.slot), self._clock())

    def headers(self, limits: Sequence[QuotaLimits]) -> list[tuple[str, str]]:
        """The quotas as headers, with the names and forms of OpenAI's: of several, those with the least left."""
        found = []
        of_limits = [self.buckets(one) for one in limits]
        for what, buckets in zip(("requests", "tokens"), zip(*of_limits, strict=True), strict=False):
            known = [bucket for bucket in buckets if bucket is not None]
            bucket = min(known, key=lambda bucket: bucket.remaining, default=None)
            if bucket is not None:
                found += [
                    (f"x-ratelimit-limit-{what}", str(bucket.limit)),
                    (f"x-ratelimit-remaining-{what}", str(bucket.remaining)),
                    (f"x-ratelimit-reset-{what}", duration(bucket.reset)),
                ]
        return found

    def _refusal(self, limits: QuotaLimits, row: int, tokens: int) -> DispatchError | None:
        found = self._limit(limits, self._shrink(limits, row), tokens)
        if found is None:
            return None
        cell, limit, wait = found
        self.table.cells[row + cell] += 1
        if limits.model:
            limit = limit.replace(" are ", f" for {limits.model} are ", 1)
        return DispatchError(grpc.StatusCode.RESOURCE_EXHAUSTED, OVER_LIMIT % limit, wait)

    def _limit(
        self, limits: QuotaLimits, buckets: tuple[QuotaBucket | None, QuotaBucket | None], tokens: int
    ) -> tuple[int, str, float] | None:
        """The limit that a request exceeds: the cell that counts it, its words, and the seconds to wait."""
        of_requests, of_tokens = buckets
        if limits.max_in_flight is not None and self.table.in_flight(limits.slot) >= limits.max_in_flight:
            return OVER_IN_FLIGHT, IN_FLIGHT % limits.max_in_flight, _SOON_S
        if of_requests is not None and (wait := of_requests.wait(1)):
            return OVER_REQUESTS, REQUESTS_USED % of_requests.limit, wait
        if of_tokens is not None and (wait := of_tokens.wait(tokens)):
            return OVER_TOKENS, TOKENS_USED % of_tokens.limit, wait
        return None

    def _charge(self, row: int, requests: int, tokens: int) -> None:
        cells = self.table.cells
        cells[row + USED_REQUESTS] += requests
        cells[row + SPENT_REQUESTS] += requests
        cells[row + USED_TOKENS] += tokens
        cells[row + SPENT_TOKENS] += tokens

    def _shrink(self, limits: QuotaLimits, row: int) -> tuple[QuotaBucket | None, QuotaBucket | None]:
        """The buckets, which are written into the table as they are now."""
        cells, now = self.table.cells, self._clock()
        of_requests, of_tokens = self._look(limits, row, now)
        cells[row + AT] = now
        cells[row + USED_REQUESTS] = 0.0 if of_requests is None else of_requests.used
        cells[row + USED_TOKENS] = 0.0 if of_tokens is None else of_tokens.used
        return of_requests, of_tokens

    def _look(self, limits: QuotaLimits, row: int, now: float) -> tuple[QuotaBucket | None, QuotaBucket | None]:
        cells = self.table.cells
        passed = max(0.0, now - cells[row + AT])
        return (
            self._bucket(limits.requests_per_minute, cells[row + USED_REQUESTS], passed),
            self._bucket(limits.tokens_per_minute, cells[row + USED_TOKENS], passed),
        )

    def _bucket(self, limit: int | None, used: float, passed: float) -> QuotaBucket | None:
        if limit is None:
            return None
        size = max(1.0, limit / self.table.shares)
        return QuotaBucket(limit, size, max(0.0, used - passed * size / _MINUTE_S))


def duration(seconds: float) -> str:
    """Seconds in OpenAI's form: 120ms, 7.5s, 6m0s."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    minutes, rest = divmod(round(seconds, 2), 60)
    return f"{int(minutes)}m{rest:g}s" if minutes else f"{rest:g}s"
