"""Admission control: bounds requests, bytes and memory, so that overload fails fast and memory stays flat.

`AdmissionControl` admits requests. `Waiters` holds requests that find no server with room, in order of arrival.
`Memory` measures this process: its pressure limits how many messages are read. `AnswerPace` computes when a refused
caller should try again.
"""

import asyncio
import ctypes
import os
import time
from collections.abc import Callable, Collection, Hashable
from enum import IntEnum

import grpc

from tritonembed_manager.router.data.load_table import LoadRow
from tritonembed_manager.router.interfaces import DispatchError

DRAINING = "the manager is draining: it accepts no new requests"
CUT = "the manager stopped before the answer arrived: --drain-timeout was over"
MAX_REQUEST = 64 * 1024 * 1024
"""Largest size of a request in bytes; gRPC and HTTP hold it before it gets here. Servers accept 32 MiB of text by
default, which may take twice as much in JSON."""


class AdmissionControl:
    """Limits on requests and bytes that wait or are in flight, in all workers together; estimates when to retry."""

    def __init__(
        self,
        row: LoadRow,
        max_in_flight: int,
        max_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._row = row
        self._max_in_flight = max_in_flight
        self._max_bytes = max_bytes
        self._pace = AnswerPace(clock)
        self._drained: asyncio.Event | None = None
        self._cut = False

    def enter(self, size: int) -> None:
        """Admit a request of `size` bytes; `leave` must follow, unless this raises DispatchError."""
        if self._drained is not None:
            raise DispatchError(grpc.StatusCode.UNAVAILABLE, DRAINING)
        table = self._row.table
        if table.admitted() >= self._max_in_flight:
            raise self.overload(f"{self._max_in_flight} requests are in flight")
        held = table.admitted_bytes()
        # A request larger than the limit is admitted if no other request is held.
        if held and held + size > self._max_bytes:
            raise self.overload(f"{self._max_bytes} bytes of requests are in flight")
        self._row.admit(size)

    def leave(self, size: int) -> None:
        """An admitted request was answered, or its caller went away."""
        self._row.leave(size)
        self._pace.left()
        if self._drained is not None and not self._row.admitted():
            self._drained.set()

    def admitted(self) -> int:
        """Requests that wait or are in flight, in all workers."""
        return self._row.table.admitted()

    @property
    def draining(self) -> bool:
        """Whether new requests are refused."""
        return self._drained is not None

    def drain(self) -> None:
        """Refuse new requests from now on."""
        if self._drained is None:
            self._drained = asyncio.Event()
            if not self._row.admitted():
                self._drained.set()

    async def drained(self) -> None:
        """After `drain`: wait until every request that this worker admitted has left."""
        if self._drained is not None:
            await self._drained.wait()

    def cut(self) -> None:
        """The drain timeout is over: from now on `raise_if_cut` raises."""
        self._cut = True

    def raise_if_cut(self) -> None:
        """Raises DispatchError after `cut`: admitted requests then end without an answer."""
        if self._cut:
            raise DispatchError(grpc.StatusCode.UNAVAILABLE, CUT)

    def overload(self, what: str) -> DispatchError:
        """The refusal. what: the limit that was reached."""
        return DispatchError(grpc.StatusCode.RESOURCE_EXHAUSTED, f"overloaded: {what}; try again", self.retry_after())

    def retry_after(self) -> float:
        """Seconds until half of the requests in flight are answered, at the pace of the last second or so."""
        own = self._row.admitted()
        seconds = self._pace.seconds_for(own / 2)
        # A worker without requests has no pace: it is refused only because of the requests of other workers.
        return seconds if own or not self._row.table.admitted() else UNKNOWN_S


_Found = asyncio.Future[Hashable]


class Waiters:
    """Wakes waiting requests: all when the servers change, one when there is a place that it can use."""

    def __init__(self) -> None:
        self._waiters: dict[_Found, Collection[Hashable]] = {}

    def __len__(self) -> int:
        return len(self._waiters)

    async def wait(self, seconds: float, refused: Collection[Hashable]) -> None:
        """Wait until woken, at most `seconds`. refused: places that the caller can't use."""
        loop = asyncio.get_running_loop()
        found: _Found = loop.create_future()
        self._waiters[found] = refused
        timer = loop.call_later(seconds, _wake, found, None)
        try:
            await found
        except asyncio.CancelledError:
            if not found.cancelled() and (place := found.result()) is not None:
                self.wake_one(place)  # another request can use it
            raise
        finally:
            timer.cancel()
            self._waiters.pop(found, None)

    def wake_one(self, place: Hashable) -> None:
        """Wake the request that has waited longest and can use the place."""
        for found, refused in self._waiters.items():
            if place not in refused and _wake(found, place):
                del self._waiters[found]
                return

    def wake_all(self) -> None:
        waiters, self._waiters = self._waiters, {}
        for found in waiters:
            _wake(found, None)


def _wake(found: _Found, place: Hashable) -> bool:
    if found.done():
        return False
    found.set_result(place)
    return True


_MEBIBYTE = 1024 * 1024
_HIGH = 640 * _MEBIBYTE
"""From this many bytes on, few messages are read at a time, and the oldest of them are given up."""
_FULL = 896 * _MEBIBYTE
"""From this many bytes on, no message is read."""
MEMORY_FULL = "overloaded: the memory for requests is used up; try again"
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Pressure(IntEnum):
    """Pressure on memory, in rising order; NONE is false."""

    NONE = 0
    HIGH = 1
    FULL = 2


class Memory:
    """Measures memory. resident: returns the bytes that this process holds, by default from /proc.

    high, full: bytes from which the pressure is HIGH and FULL.
    """

    def __init__(self, resident: Callable[[], int] | None = None, high: int = _HIGH, full: int = _FULL) -> None:
        self._resident = resident or _resident
        self._high = high
        self._full = full
        self.pressure = Pressure.NONE
        self.over = 0
        """Bytes above `high` at the last look."""
        self.held = 0
        """Bytes at the last look."""

    def look(self) -> None:
        """Measure. It takes a few microseconds."""
        self.held = held = self._resident()
        self.over = max(held - self._high, 0)
        self.pressure = Pressure.FULL if held >= self._full else Pressure.HIGH if self.over else Pressure.NONE


def give_back() -> None:
    """Return the free memory that malloc keeps to the system."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _resident() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * _PAGE


_SHORTEST_S, _LONGEST_S = 0.1, 60.0
UNKNOWN_S = 1.0
"""The answer until a pace was measured."""
_PAUSE_S = 2.0
"""After this long without a refusal, the next one begins a new overload."""
_LEAST_S, _LEAST_ANSWERS = 0.25, 16
"""A shorter or smaller measurement shows too little, unless it has lasted for _FEW_S."""
_FEW_S = 4.0
_WINDOW_S, _WINDOW_ANSWERS = 1.0, 32
"""A measurement that has both of them ends, and the next one begins."""


class AnswerPace:
    """How fast admitted requests are answered during an overload. It gives the time after which a caller should retry.

    Before an overload, requests are answered as fast as they come, which is no measure of the fastest pace. So the pace
    is measured from the first refusal on, and kept for the next overload. clock: seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._refused = self._since = float("-inf")
        self._left = 0
        self._rate = 0.0

    def left(self) -> None:
        """An admitted request has left."""
        self._left += 1

    def seconds_for(self, requests: float) -> float:
        """How long it takes to answer this many; to be called for each refusal."""
        now = self._clock()
        if now - self._refused > _PAUSE_S:
            self._begin(now)
        self._refused = now
        passed = now - self._since
        if passed >= _FEW_S or (passed >= _LEAST_S and self._left >= _LEAST_ANSWERS):
            self._rate = max(self._left, 1) / passed
            if (passed >= _WINDOW_S and self._left >= _WINDOW_ANSWERS) or passed >= _LONGEST_S:
                self._begin(now)
        if not self._rate:
            return UNKNOWN_S
        return min(max(requests / self._rate, _SHORTEST_S), _LONGEST_S)

    def _begin(self, now: float) -> None:
        self._since, self._left = now, 0
