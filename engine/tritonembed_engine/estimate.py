"""How fast the executor is, and so how long work takes: the size of a batch, and deadlines that can't be met.

Pure: the clock is an argument.
"""

from collections.abc import Callable

from tritonembed_engine.errors import DeadlineUnreachable

SLICE_SECONDS = 0.5
"""A batch that blocks the executor takes about this long at most: what waits can get in between two batches."""
LEAST_SLICE_TOKENS = 256
"""Smaller batches are slower per token."""
FRESH_SECONDS = 60.0
"""An older measurement refuses nothing: the machine may have been busy with other work at that time."""
CLEARLY = 1.5
"""A request is refused if it would take this many times what is left to it."""
_WEIGHT_OF_A_SLOWER_BATCH = 0.2
_FULL = 0.5


class Pace:
    """Tokens per second, measured on batches that are at least half full.

    Small batches are mostly overhead and say little about large ones, so a slower batch counts only if it is full. A
    faster one counts at once: too high a pace refuses too little. clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._rate: float | None = None
        self._measured = 0.0
        self._finished = 0.0

    def batch_done(self, tokens: int, budget: int, started: float) -> None:
        """A batch that was launched at `started` has its result now. budget: the tokens that it could have had."""
        now = self._clock()
        # Where batches overlap, the first part of a batch's time belongs to the one before it.
        seconds = now - max(started, self._finished)
        self._finished = now
        if seconds <= 0:
            return
        rate, full = tokens / seconds, tokens >= budget * _FULL
        if self._rate is not None and rate > self._rate:
            self._rate = rate
        elif full:
            before = rate if self._rate is None else self._rate
            self._rate = before + _WEIGHT_OF_A_SLOWER_BATCH * (rate - before)
        if full:
            self._measured = now

    @property
    def tokens_per_second(self) -> float | None:
        """As measured within the last minute; None before and after that."""
        return self._rate if self._clock() - self._measured <= FRESH_SECONDS else None

    def slice_tokens(self) -> int:
        """Tokens of a batch that takes SLICE_SECONDS; the least before anything was measured."""
        return max(LEAST_SLICE_TOKENS, int((self._rate or 0) * SLICE_SECONDS))

    def seconds(self, tokens: int) -> float | None:
        """How long so many tokens take; None if that is not known."""
        rate = self.tokens_per_second
        return tokens / rate if rate else None

    def refusal(self, tokens: int, left: float) -> DeadlineUnreachable | None:
        """Why a request that ends after so many tokens clearly misses a deadline in `left` seconds, or None."""
        estimate = self.seconds(tokens)
        if estimate is None or estimate <= left * CLEARLY:
            return None
        # "deadline passed" is how clients tell deadlines from servers that are gone.
        return DeadlineUnreachable(
            f"it would end after its deadline passed: about {estimate:.1f} s of work at {tokens / estimate:,.0f} "
            f"tokens per second, and {max(left, 0.0):.1f} s are left"
        )
