"""How fast admitted requests are answered while there are too many: for the time after which a caller should retry.

Before an overload, requests are answered as fast as they come, which says nothing about how fast they can be. So the
pace is measured from the first refusal on, and kept for the next overload.
"""

from collections.abc import Callable

_SHORTEST_S, _LONGEST_S = 0.1, 60.0
UNKNOWN_S = 1.0
"""The answer until a pace was measured."""
_PAUSE_S = 2.0
"""After this long without a refusal, the next one begins a new overload."""
_LEAST_S, _LEAST_ANSWERS = 0.25, 16
"""A shorter or smaller measurement says too little, unless it has lasted for _FEW_S."""
_FEW_S = 4.0
_WINDOW_S, _WINDOW_ANSWERS = 1.0, 32
"""A measurement that has both of them ends, and the next one begins."""


class Pace:
    """clock: seconds."""

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
