"""Whether a request's client is gone. Triton is asked so seldom that the questions cost nothing."""

import time
from collections.abc import Callable

EVERY_SECONDS = 0.5
"""The question goes from the stub to the server and back, between two batches."""


class Abandonment:
    """ask: `is_cancelled` of a Triton request, which must not be answered yet. clock: monotonic seconds."""

    __slots__ = ("_ask", "_clock", "_next")

    def __init__(self, ask: Callable[[], bool], clock: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._clock = clock
        self._next = clock() + EVERY_SECONDS

    def __call__(self) -> bool:
        """Ask, unless the request's arrival or the last question is less than EVERY_SECONDS ago: then False."""
        now = self._clock()
        if now < self._next:
            return False
        self._next = now + EVERY_SECONDS
        return self._ask()
