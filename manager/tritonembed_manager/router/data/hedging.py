"""Hedging: an interactive request that is late is sent to an idle server, too. The first answer counts.

At most 5 % more requests are sent, and only to servers without work. So hedging helps against a server that is slow for
a moment, and does not add to an overload.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Literal

import grpc

from tritonembed_manager.router.data.metrics import Meter
from tritonembed_manager.router.data.pool import UpstreamPool
from tritonembed_manager.router.data.request import ForwardedRequest
from tritonembed_manager.router.data.upstream import Attempt, Upstream
from tritonembed_manager.router.interfaces import DispatchError

After = float | Literal["p95"]
"""When a request is late: after this many seconds, or later than 95 % of the last interactive requests."""
P95: Literal["p95"] = "p95"
INTERACTIVE = 1
"""KServe's priority of the requests that are hedged."""
SHARE = 0.05
"""The share of interactive requests that may be sent again."""
MOST_SAVED = 10.0
"""The most second attempts that a quiet time saves up."""
KEPT, LEAST = 1000, 100
"""The 95th percentile is of this many latencies; with fewer than LEAST nothing is hedged."""
_OK = grpc.StatusCode.OK


class Budget:
    """Lets through a share of the requests that are counted."""

    def __init__(self) -> None:
        self._saved = 0.0

    def request(self) -> None:
        """Count a request."""
        self._saved = min(self._saved + SHARE, MOST_SAVED)

    def take(self) -> bool:
        """Whether another request may be sent again. If so, it counts as sent."""
        # Twenty times 0.05 is a little less than 1.
        if self._saved < 1 - SHARE / 2:
            return False
        self._saved -= 1
        return True


class Hedging:
    """Hedges the requests of one worker. begin: sends a request to a server. clock: seconds, as of the attempts."""

    def __init__(
        self,
        after: After,
        pool: UpstreamPool,
        meter: Meter,
        begin: Callable[[ForwardedRequest, Upstream], Attempt],
        clock: Callable[[], float],
    ) -> None:
        self._after = after
        self._pool = pool
        self._meter = meter
        self._begin = begin
        self._clock = clock
        self._budget = Budget()
        self._latencies: deque[float] = deque(maxlen=KEPT)
        self._counted = 0
        self._p95: float | None = None

    async def first(self, request: ForwardedRequest, server: Upstream, attempt: Attempt) -> tuple[Upstream, Attempt]:
        """The attempt that counts: this attempt, or a second attempt that was answered first.

        Only the returned attempt is left in flight. The first attempt may have failed; a second attempt has not.
        """
        if request.envelope.priority != INTERACTIVE or request.alone:
            return server, attempt
        self._budget.request()
        attempt.done.add_done_callback(lambda _: self._ended(attempt))
        delay = self.delay()
        if delay is None:
            return server, attempt
        await asyncio.wait([attempt.done], timeout=max(0.0, attempt.began + delay - self._clock()))
        second = None if attempt.done.done() else self._second(request, attempt)
        if second is None or not await self._wins(attempt, *second):
            return server, attempt
        # It would have taken at least this long.
        self._count(self._clock() - attempt.began)
        self._drop(server, attempt)
        return second

    def delay(self) -> float | None:
        """Seconds after which a request is late; None if that is not known yet."""
        return self._p95 if self._after == P95 else self._after

    def _second(self, request: ForwardedRequest, attempt: Attempt) -> tuple[Upstream, Attempt] | None:
        """The second attempt, if there is an idle server for it."""
        candidates = self._pool.candidates([*request.tried, attempt.incarnation])
        wanted = request.envelope.space
        idle = next((server for server in candidates if self._is_idle(server, wanted)), None)
        if idle is None or not self._budget.take():
            return None
        try:
            return idle, self._begin(request, idle)
        except DispatchError:
            return None  # its time is over

    async def _wins(self, attempt: Attempt, server: Upstream, second: Attempt) -> bool:
        """Whether the second attempt is answered first; if not, it is dropped."""
        won = False
        try:
            await asyncio.wait([attempt.done, second.done], return_when=asyncio.FIRST_COMPLETED)
            won = not attempt.done.done() and second.done.result() and await second.call.code() is _OK
        finally:
            if not won:
                self._drop(server, second)
            self._meter.hedged(won=won)
        return won

    def _is_idle(self, server: Upstream, space: str) -> bool:
        return not server.in_flight and not server.outlier.trial and space in ("", server.view.space)

    def _drop(self, server: Upstream, attempt: Attempt) -> None:
        attempt.call.cancel()
        self._pool.end(server, attempt)
        self._meter.attempt(server.key, grpc.StatusCode.CANCELLED, self._clock() - attempt.began)
        if not attempt.done.done():
            attempt.done.set_result(False)

    def _ended(self, attempt: Attempt) -> None:
        if not attempt.call.cancelled():
            self._count(self._clock() - attempt.began)

    def _count(self, seconds: float) -> None:
        self._latencies.append(seconds)
        self._counted += 1
        if len(self._latencies) >= LEAST and self._counted % (LEAST // 2) == 0:
            self._p95 = sorted(self._latencies)[int(0.95 * len(self._latencies))]
