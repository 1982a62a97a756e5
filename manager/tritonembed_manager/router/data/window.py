"""The window of a server: the work that it may have, so that it is busy and its queue stays short.

Work is measured in bytes of encoded requests. A token has about four bytes, in English as in token ids. A text counts
at most as the longest that a model takes, because the rest is cut off. Texts that are embedded in chunks count whole.

By Little's law, a server that finishes `rate` bytes per second while it holds `rate x T` takes T for each of them. So
the window is the measured rate times the time that work may spend at the server. If the window was too small to keep
the server busy, the next measured rate is higher, and so is the next window. The rate is measured only while requests
wait for the server: at other times it shows the load, not the server.
"""

import time
from collections import deque
from collections.abc import Callable

BYTES_PER_TOKEN = 4
"""Approximate for English texts, exact for token ids."""
MOST_PER_ROW = 32_768 * BYTES_PER_TOKEN
"""No model here takes more tokens of one text."""
LOOSE_S = 0.5
"""Time of work at a server if no caller waits for a short answer. Large batches are the fastest."""
TIGHT_S = 0.05
"""Time of work at a server if small and large requests arrived within MIXED_S: a small request waits about this
long."""
MIXED_S = 60.0
LEAST_PART = 256 * BYTES_PER_TOKEN
"""Smaller parts of a large request are slower per token."""
_FIRST = 4096 * BYTES_PER_TOKEN
"""Window per replica before the first measurement."""
_LOOK_EVERY_S = 0.25
_NEWEST = 0.5
"""Weight of the newest measurement."""
FRESH_S = 60.0
"""An older measurement refuses no request: the machine may have been busy with other work then."""


class Window:
    """The window of one server, as one worker sees it. clock: seconds."""

    def __init__(self, replicas: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._replicas = max(replicas, 1)
        # At each replica one request is computed, and one is on its way.
        self._parts = self._replicas + 1
        self._clock = clock
        self._rate: float | None = None
        self._highest: deque[tuple[float, float]] = deque()
        """Times and rates of which each is higher than all later ones."""
        self._since: float | None = None
        self._done = 0

    def look(self, done: int, *, waiting: bool) -> None:
        """Measure again. Call it for each answer. done: bytes answered so far. waiting: whether requests wait now."""
        now = self._clock()
        if not waiting or self._since is None or done < self._done:
            self._since, self._done = (now, done) if waiting else (None, 0)
            return
        passed = now - self._since
        if passed < _LOOK_EVERY_S or done - self._done < self.part(TIGHT_S):
            # A small answer while a large part is computed says nothing about the rate. Nor does a request that ends
            # without an answer, such as a cancelled one.
            return
        rate = (done - self._done) / passed
        self._since, self._done = now, done
        self._rate = rate if self._rate is None else self._rate + _NEWEST * (rate - self._rate)
        while self._highest and self._highest[-1][1] <= rate:
            self._highest.pop()
        self._highest.append((now, rate))

    @property
    def rate(self) -> float:
        """The last measured rate, however old, in bytes per second; 0 if none was measured."""
        return self._rate or 0.0

    @property
    def best_rate(self) -> float | None:
        """The highest rate of the last FRESH_S, in bytes per second; None if nothing was measured.

        A server that hung, or had a request that is slow for its size, becomes faster afterwards.
        """
        while self._highest and self._clock() - self._highest[0][0] > FRESH_S:
            self._highest.popleft()
        return self._highest[0][1] if self._highest else None

    def size(self, seconds: float) -> float:
        """Bytes that the server may have, so that each is there for about `seconds`."""
        if self._rate is None:
            return self._replicas * _FIRST
        return max(self._rate * seconds, self._parts * LEAST_PART)

    def part(self, seconds: float) -> int:
        """Bytes of one part of a large request."""
        return int(self.size(seconds) / self._parts)
