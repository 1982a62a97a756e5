"""What is taken in: a bounded number of requests, and of bytes, so that overload is said at once and memory is flat."""

import asyncio
import time
from collections.abc import Callable

import grpc

from tritonembed_manager.serve.load_table import LoadRow
from tritonembed_manager.serve.model import DispatchError

DRAINING = "the manager is draining: it takes no new requests"
CUT = "the manager stopped before the answer came: --drain-timeout was over"
MAX_REQUEST = 64 * 1024 * 1024
"""Bytes of one request, which gRPC and HTTP hold before it comes here. A server takes 32 MiB of text unless it is told
otherwise, and JSON may need twice as much for it."""
_SHORTEST_S, _LONGEST_S = 0.1, 10.0
_WINDOW_S = 1.0


class Admission:
    """Bounds on what is waiting or in flight, of all workers together; and the advice when to come again."""

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
        self._clock = clock
        self._since = clock()
        self._left = 0
        self._rate = 0.0
        self._drained: asyncio.Event | None = None
        self._cut = False

    def enter(self, size: int) -> None:
        """Take a request of so many bytes in; `leave` must follow. Raises DispatchError, and nothing is to follow."""
        if self._drained is not None:
            raise DispatchError(grpc.StatusCode.UNAVAILABLE, DRAINING)
        table = self._row.table
        if table.admitted() >= self._max_in_flight:
            raise self.overload(f"{self._max_in_flight} requests are in flight")
        held = table.admitted_bytes()
        # A request larger than the bound is taken in when it is alone.
        if held and held + size > self._max_bytes:
            raise self.overload(f"{self._max_bytes} bytes of requests are in flight")
        self._row.admit(size)

    def leave(self, size: int) -> None:
        """It was answered, or its caller went away."""
        self._row.leave(size)
        self._left += 1
        if self._drained is not None and not self._row.admitted():
            self._drained.set()

    @property
    def draining(self) -> bool:
        """Whether nothing new is taken in."""
        return self._drained is not None

    def drain(self) -> None:
        """Take nothing new in from now on."""
        if self._drained is None:
            self._drained = asyncio.Event()
            if not self._row.admitted():
                self._drained.set()

    async def drained(self) -> None:
        """After `drain`: wait until everything that was taken in (by this worker) has left."""
        if self._drained is not None:
            await self._drained.wait()

    def cut(self) -> None:
        """The time to drain is over: from now on `raise_if_cut` raises."""
        self._cut = True

    def raise_if_cut(self) -> None:
        """Raises DispatchError once what was taken in is to end without an answer."""
        if self._cut:
            raise DispatchError(grpc.StatusCode.UNAVAILABLE, CUT)

    def overload(self, what: str) -> DispatchError:
        """The refusal, which names the limit that was reached."""
        return DispatchError(grpc.StatusCode.RESOURCE_EXHAUSTED, f"overloaded: {what}; try again", self.retry_after())

    def retry_after(self) -> float:
        """Seconds in which, at the pace of the last second or so, half of what is in flight will have been answered."""
        now = self._clock()
        passed = now - self._since
        if passed >= _WINDOW_S:
            self._rate, self._left, self._since = self._left / passed, 0, now
        rate = max(self._rate, self._left / max(passed, _WINDOW_S))
        if not rate:
            return 1.0
        return min(max(self._row.admitted() / (2 * rate), _SHORTEST_S), _LONGEST_S)
