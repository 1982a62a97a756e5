"""What tenants have used, as all workers see it: a table in shared memory, a row per tenant.

A row's lock makes a check and its booking one step, over all workers. The kernel releases the lock of a process that
ends. A process that is stopped just then keeps it, so a lock that takes long is gone without: the row may then miss one
booking of a worker.
"""

import fcntl
import mmap
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

SLOTS = 4096
"""Different tenants from the start of a manager to its end."""
_HEADER = 3
"""Cells before the first row: workers, rows, shares."""
_CELL = 8
USED_REQUESTS, USED_TOKENS, AT = 0, 1, 2
"""Cells of a row: what is used of the quotas, at a time in seconds of the monotonic clock."""
SPENT_REQUESTS, SPENT_TOKENS = 3, 4
"""All that was ever charged to the quotas."""
ANSWERED, TOKENS, FAILED, OVER_REQUESTS, OVER_TOKENS, OVER_IN_FLIGHT = range(5, 11)
"""Requests, and tokens of the answers; see `Used`."""
_OWN = 11
"""Cells of a row before those of the workers, which are their requests in flight."""
_PATIENCE_S = 0.02


@dataclass(frozen=True)
class Used:
    """What a tenant's requests came to since the start of the manager."""

    answered: int
    tokens: int
    """Of the answers."""
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
        self._map = mmap.mmap(fd, os.fstat(fd).st_size)
        self.cells = memoryview(self._map).cast("d")
        self.workers, self.slots = int(self.cells[0]), int(self.cells[1])
        self._width = _OWN + self.workers

    @classmethod
    def create(cls, workers: int, slots: int = SLOTS) -> "QuotaTable":
        """A new table of zeros. A child process inherits its `fd` with `pass_fds`."""
        fd = os.memfd_create("tritonembed-quotas")
        os.ftruncate(fd, _CELL * (_HEADER + slots * (_OWN + workers)))
        with mmap.mmap(fd, 0) as memory, memoryview(memory) as raw, raw.cast("d") as cells:
            cells[0], cells[1], cells[2] = workers, slots, 1
        return cls(fd)

    def close(self) -> None:
        """Release memory and descriptor."""
        self.cells.release()
        self._map.close()
        os.close(self.fd)

    @property
    def shares(self) -> float:
        """Managers that divide the quotas: 1 if there is only this one, or if they count together."""
        return self.cells[2]

    @shares.setter
    def shares(self, shares: float) -> None:
        self.cells[2] = shares

    def row(self, slot: int) -> int:
        """The index of a tenant's first cell."""
        return _HEADER + slot * self._width

    def worker_cell(self, slot: int, worker: int) -> int:
        """The index of the cell with a worker's requests in flight."""
        return self.row(slot) + _OWN + worker

    def in_flight(self, slot: int) -> int:
        """A tenant's requests in flight, of all workers."""
        first = self.row(slot) + _OWN
        return int(sum(self.cells[first : first + self.workers]))

    def used(self, slot: int) -> Used:
        """What the tenant's requests came to."""
        first = self.row(slot)
        counts = [*self.cells[first + ANSWERED : first + _OWN], self.in_flight(slot)]
        return Used(*map(int, counts))

    def zero(self, worker: int) -> None:
        """Nothing of a worker that has ended is in flight."""
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
