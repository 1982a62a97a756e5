"""How many requests may be sent again: a share of those that came in lately, so that retries never are the load."""

import time
from collections.abc import Callable

_BUCKETS = 10


class RetryBudget:
    """At most `share` of the requests of the last `window` seconds, and at least `least`, are sent again.

    Counted in tenths of the window: what is older than that is forgotten a tenth at a time.
    """

    def __init__(
        self,
        share: float = 0.2,
        window: float = 10.0,
        least: int = 3,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._share = share
        self._least = least
        self._clock = clock
        self._tick = window / _BUCKETS
        self._now = int(clock() / self._tick)
        self._requests = [0] * _BUCKETS
        self._retries = [0] * _BUCKETS

    def request(self) -> None:
        """A request came in."""
        self._turn()
        self._requests[self._now % _BUCKETS] += 1

    def take(self) -> bool:
        """Whether one more may be sent again; if so, it is charged."""
        self._turn()
        if sum(self._retries) >= max(self._least, int(self._share * sum(self._requests))):
            return False
        self._retries[self._now % _BUCKETS] += 1
        return True

    def _turn(self) -> None:
        now = int(self._clock() / self._tick)
        for passed in range(max(self._now + 1, now - _BUCKETS + 1), now + 1):
            self._requests[passed % _BUCKETS] = self._retries[passed % _BUCKETS] = 0
        self._now = now
