"""The load of every server, as all workers see it: a table in shared memory.

Each worker writes only its own row, so there are no locks. A reader may see a row between two additions, so loads are
hints and limits are soft. If a worker is killed, the parent zeroes its row, and the loads are right again.
"""

import fcntl
import mmap
import os
from collections.abc import Iterable

_HEADER = 2
"""Cells before the first row: rows, columns."""
_CELL = 8
_OWN = 5
"""Cells of a row before the first server: requests that this worker has admitted, their bytes, the weight of its
callers (thousandths), and when it last had a small request and a large one waiting (milliseconds)."""
_PER_SERVER = 4
_MILLI = 1000
SLOTS = 1024
"""Default number of servers at a time."""


class LoadTable:
    """int64 cells. Per worker: those of `_OWN`; then, per server slot, work (bytes), requests, work done so far, and
    the rate that this worker measured (bytes per second)."""

    def __init__(self, fd: int) -> None:
        """The table behind a file descriptor made by `create`, here or in the parent. The descriptor stays open."""
        self.fd = fd
        self._map = mmap.mmap(fd, os.fstat(fd).st_size)
        self._cells = memoryview(self._map).cast("q")
        self.workers, self.slots = self._cells[0], self._cells[1]
        self._width = _OWN + _PER_SERVER * self.slots

    @classmethod
    def create(cls, workers: int, slots: int = SLOTS) -> "LoadTable":
        """A new table of zeros. A child that is started with `pass_fds=[table.fd]` inherits its `fd`."""
        fd = os.memfd_create("tritonembed-load")
        os.ftruncate(fd, _CELL * (_HEADER + workers * (_OWN + _PER_SERVER * slots)))
        with mmap.mmap(fd, 0) as memory, memoryview(memory) as raw, raw.cast("q") as cells:
            cells[0], cells[1] = workers, slots
        return cls(fd)

    def close(self) -> None:
        """Release memory and descriptor. The table's rows are unusable afterwards."""
        self._cells.release()
        self._map.close()
        os.close(self.fd)

    def row(self, worker: int) -> "LoadRow":
        """The row that a worker writes. Raises ValueError for a worker that does not exist."""
        if not 0 <= worker < self.workers:
            raise ValueError(f"there is no worker {worker} among {self.workers}")
        return LoadRow(self, self._cells, _HEADER + worker * self._width)

    def zero(self, worker: int) -> None:
        """Reset the row of a worker that has ended."""
        first = _HEADER + worker * self._width
        self._cells[first : first + self._width] = memoryview(bytes(self._width * _CELL)).cast("q")

    def work(self, slot: int) -> int:
        """Bytes outstanding at a server, of all workers."""
        return self._column(_OWN + _PER_SERVER * slot)

    def in_flight(self, slot: int) -> int:
        """Requests outstanding at a server, of all workers."""
        return self._column(_OWN + _PER_SERVER * slot + 1)

    def done(self, slot: int) -> int:
        """Bytes that a server has answered so far, for all workers. It falls if a worker is replaced."""
        return self._column(_OWN + _PER_SERVER * slot + 2)

    def rate(self, slot: int) -> int:
        """Bytes per second that a server answers while requests wait for it, as any worker measured; 0 if none did."""
        return max(self._cells[index] for index in self._indices(_HEADER + _OWN + _PER_SERVER * slot + 3))

    def weight(self) -> int:
        """Weight of the callers that have requests, over all workers, in thousandths."""
        return self._column(2)

    def mixed_at(self) -> float:
        """When small and large requests last met: the earlier of the last small and the last large one, in seconds."""
        return min(self._latest(3), self._latest(4)) / _MILLI

    def try_lane(self, slot: int) -> bool:
        """Take a server's lane, which one worker holds at a time; False if another worker holds it."""
        try:
            # The kernel releases the lock when this process ends, however it ends.
            fcntl.lockf(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, slot)
        except OSError:
            return False
        return True

    def leave_lane(self, slot: int) -> None:
        fcntl.lockf(self.fd, fcntl.LOCK_UN, 1, slot)

    def admitted(self) -> int:
        """Requests that are waiting or in flight, of all workers."""
        return self._column(0)

    def admitted_bytes(self) -> int:
        """Bytes of the requests that are waiting or in flight, of all workers."""
        return self._column(1)

    def _latest(self, column: int) -> int:
        return max(self._cells[index] for index in self._indices(_HEADER + column))

    def _column(self, column: int) -> int:
        cells = self._cells
        first = _HEADER + column
        if self.workers == 1:
            return cells[first]
        return sum(self._cells[index] for index in self._indices(first))

    def _indices(self, first: int) -> Iterable[int]:
        return range(first, first + self.workers * self._width, self._width)


class LoadRow:
    """The row of one worker."""

    def __init__(self, table: LoadTable, cells: memoryview, first: int) -> None:
        self.table = table
        self._cells: memoryview[int] = cells
        self._first = first
        self._servers = first + _OWN

    def admit(self, size: int) -> None:
        """A request of `size` bytes was admitted."""
        self._cells[self._first] += 1
        self._cells[self._first + 1] += size

    def leave(self, size: int) -> None:
        """An admitted request ended, with or without an answer."""
        self._cells[self._first] -= 1
        self._cells[self._first + 1] -= size

    def begin(self, slot: int, work: int) -> None:
        """A request of `work` bytes is sent to a server."""
        cell = self._servers + _PER_SERVER * slot
        self._cells[cell] += work
        self._cells[cell + 1] += 1

    def end(self, slot: int, work: int) -> None:
        """A request of `work` bytes has left a server."""
        cell = self._servers + _PER_SERVER * slot
        self._cells[cell] -= work
        self._cells[cell + 1] -= 1

    def show(self, in_flight: dict[int, int]) -> None:
        """Show requests that another process counts, by slot; other slots get none. They are not admitted here."""
        for slot in range(self.table.slots):
            self._cells[self._servers + _PER_SERVER * slot + 1] = in_flight.get(slot, 0)

    def answered(self, slot: int, work: int) -> None:
        """A server answered a request of `work` bytes."""
        self._cells[self._servers + _PER_SERVER * slot + 2] += work

    def measured(self, slot: int, rate: float) -> None:
        """This worker measured a server's rate, in bytes per second; 0 if it has not, or not since the server's
        start."""
        self._cells[self._servers + _PER_SERVER * slot + 3] = int(rate)

    def work(self, slot: int) -> int:
        """Bytes of this worker outstanding at a server."""
        return self._cells[self._servers + _PER_SERVER * slot]

    def weigh(self, weight: float) -> None:
        """Add to the weight of this worker's callers. The addition is negative when a caller's last request ends."""
        self._cells[self._first + 2] += round(weight * _MILLI)

    def weight(self) -> int:
        """Weight of this worker's callers that have requests, in thousandths."""
        return self._cells[self._first + 2]

    def saw(self, now: float, *, small: bool) -> None:
        """A small request came, or a large one waits. now: in seconds."""
        self._cells[self._first + (3 if small else 4)] = int(now * _MILLI)

    def in_flight(self, slot: int) -> int:
        """Requests of this worker at a server."""
        return self._cells[self._servers + _PER_SERVER * slot + 1]

    def admitted(self) -> int:
        """Requests of this worker that are waiting or in flight."""
        return self._cells[self._first]
