"""Batches by token budget, and the pace of the executor. Waiting requests are taken at once; large requests are split.

It has no thread and no clock of its own. `engine.py` drives it.
"""

import math
from collections import deque
from collections.abc import Callable

from tritonembed_engine.errors import DeadlineUnreachable
from tritonembed_engine.request import Batch, Piece, Request

_SMALL = 0.5
"""Requests of up to this share of a batch are the smallest class."""
_CLASS_RATIO = 8
"""The largest size of a class, in multiples of that of the class before."""

SMALL_TOKENS = 1024
"""Requests up to this size are small: a person may be waiting for the answer. The manager has the same limit."""
MIXED_SECONDS = 60.0
SLICE_SECONDS = 0.5
"""A batch that blocks the executor takes at most about this long, so that other requests can run between two
batches."""
MIXED_SLICE_SECONDS = 0.008
"""While small and large requests are mixed, the batches that are launched take at most about this long together: a
small request waits for them."""
LEAST_SLICE_TOKENS = 256
"""Smaller batches are slower per token."""
FRESH_SECONDS = 60.0
"""An older measurement refuses no request: the machine may have been busy with other work then."""
CLEARLY = 1.5
"""A request is refused if it would take this many times the time left until its deadline."""
_WEIGHT_OF_A_SLOWER_BATCH = 0.2
_FULL = 0.5


class Batcher:
    """First come, first served among requests of about one size; a small request need not wait for all of a huge one.

    The class of a request depends on its tokens: up to half a batch and SMALL_TOKENS, up to 8 times that, up to 64
    times, and so on. While requests of several classes wait, half of the work is for the oldest request of all, so that
    none starves, and the other half for the oldest one of the smallest class.

    max_tokens: the budget of one batch; a single sentence that is longer goes alone. max_sentences: the most sentences
    of a batch (the executor's buffers). soft_tokens: a smaller budget, if there is one for the moment. apart: whether
    requests of the smallest class get batches of their own, in turns with the oldest request: then they need not wait
    until a part of it is computed beside them.
    """

    def __init__(self, max_tokens: int, max_sentences: int) -> None:
        self.max_tokens = max_tokens
        self.max_sentences = max_sentences
        self.soft_tokens: int | None = None
        self.apart = False
        self.waiting_sentences = 0
        self._queues: dict[int, deque[Request]] = {}
        """Requests by class, the smallest class first; no class is empty."""
        self._tokens: dict[int, int] = {}
        """Waiting tokens, by class."""
        self._came = 0
        self._debt = 0
        """Tokens of smaller requests that went ahead of the oldest request, less its own tokens since."""

    def __bool__(self) -> bool:
        return bool(self._queues)

    @property
    def budget(self) -> int:
        """Tokens of the next batch."""
        return min(self.max_tokens, self.soft_tokens or self.max_tokens)

    @property
    def waiting_requests(self) -> int:
        """Number of requests that wait, including one that is partly done."""
        return sum(map(len, self._queues.values()))

    @property
    def waiting_tokens(self) -> int:
        """Number of tokens that wait."""
        return sum(self._tokens.values())

    def add(self, request: Request) -> None:
        """Queue a request that has at least one sentence."""
        self._came += 1
        request.order, request.size_class = self._came, self._class_of(request.tokens)
        if request.size_class not in self._queues:
            self._queues[request.size_class] = deque()
            self._queues = dict(sorted(self._queues.items()))
        self._queues[request.size_class].append(request)
        self._tokens[request.size_class] = self._tokens.get(request.size_class, 0) + request.tokens
        self.waiting_sentences += len(request.lengths)

    def tokens_until_done(self, tokens: int) -> int:
        """The least number of tokens that are computed until a request of `tokens` tokens, if it came now, is done."""
        limit = self._class_of(tokens)
        return tokens + sum(waiting for key, waiting in self._tokens.items() if key <= limit)

    def take(self, now: float) -> tuple[Batch | None, list[Request]]:
        """The next batch, or None if no request waits, and the requests that are given up.

        A request is given up if its deadline passed or its client is gone, even if a part of it was computed.
        """
        pieces: list[Piece] = []
        given_up: list[Request] = []
        sentences, budget = 0, self.budget
        room = budget
        while self._queues and sentences < self.max_sentences:
            request, share = self._next()
            if request.is_over(now):
                self._drop(request)
                if not request.failed:
                    given_up.append(request)
                continue
            if self.apart and pieces and pieces[-1].request.size_class == 0 < request.size_class:
                # The next batch is for the oldest request, however small this batch is.
                self._debt = max(self._debt, budget)
                break
            start = request.taken
            tokens = self._take_from(request, room, share, sentences)
            if request.taken == start:
                break
            room -= tokens
            sentences += request.taken - start
            pieces.append(Piece(request, start, request.taken))
            if request.taken == len(request.lengths):
                self._leave(request)
        if any(piece.request.adapter is not None for piece in pieces):
            # An adapter's rows side by side are one product.
            pieces.sort(key=lambda piece: piece.request.adapter or "")
        return (Batch(pieces, sentences, budget - room) if pieces else None), given_up

    def drain(self) -> list[Request]:
        """Give up all waiting requests, the oldest first."""
        waiting = sorted((one for queue in self._queues.values() for one in queue), key=lambda one: one.order)
        self._queues.clear()
        self._tokens.clear()
        self.waiting_sentences = self._debt = 0
        return waiting

    def _class_of(self, tokens: int) -> int:
        number, limit = 0, min(self.budget * _SMALL, SMALL_TOKENS)
        while tokens > limit:
            number, limit = number + 1, limit * _CLASS_RATIO
        return number

    def _next(self) -> tuple[Request, float | None]:
        """The request that gets the next part of a batch, and its tokens there; None for as many as there is room."""
        if len(self._queues) == 1:
            self._debt = 0
            return next(iter(self._queues.values()))[0], None
        heads = [queue[0] for queue in self._queues.values()]
        smallest, oldest = heads[0], min(heads, key=lambda request: request.order)
        if smallest is oldest:
            self._debt = 0
            return oldest, None
        share = self.budget * _SMALL - self._debt
        return (smallest, share) if share > 0 else (oldest, None)

    def _take_from(self, request: Request, room: int, share: float | None, already: int) -> int:
        """Take the sentences of a request that fit, up to the one that completes its share; returns their tokens.

        already: sentences that the batch has. A sentence over the budget is taken if it is the first.
        """
        start = stop = request.taken
        last = min(len(request.lengths), start + self.max_sentences - already)
        tokens = 0
        while stop < last and (share is None or tokens < share):
            longer = tokens + request.lengths[stop]
            if longer > room and (already or stop > start):
                break
            tokens, stop = longer, stop + 1
        request.taken = stop
        self.waiting_sentences -= stop - start
        self._tokens[request.size_class] -= tokens
        self._debt = max(0, self._debt - tokens) if share is None else self._debt + tokens
        return tokens

    def _drop(self, request: Request) -> None:
        self.waiting_sentences -= len(request.lengths) - request.taken
        self._tokens[request.size_class] -= sum(request.lengths[request.taken :])
        self._leave(request)

    def _leave(self, request: Request) -> None:
        queue = self._queues[request.size_class]
        queue.popleft()
        if not queue:
            del self._queues[request.size_class], self._tokens[request.size_class]


class Mix:
    """Whether small and large requests arrived within the last MIXED_SECONDS."""

    def __init__(self) -> None:
        self._small = self._large = -math.inf

    def saw(self, tokens: int, now: float) -> None:
        """A request arrived. tokens: of all of its sentences."""
        if tokens <= SMALL_TOKENS:
            self._small = now
        else:
            self._large = now

    def holds(self, now: float) -> bool:
        """Whether they are mixed."""
        return now - min(self._small, self._large) < MIXED_SECONDS


class Pace:
    """Tokens per second, measured on batches that are at least half full.

    Small batches are mostly overhead, so a slower batch counts only if it is full. A faster batch counts at once: too
    high a pace only refuses too few requests. clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._rate: float | None = None
        self._measured = 0.0
        self._finished = 0.0

    def batch_done(self, tokens: int, budget: int, started: float) -> None:
        """To be called when a batch that was launched at `started` has its result. budget: its token budget."""
        now = self._clock()
        # If batches overlap, the first part of a batch's time belongs to the earlier batch.
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
        """The pace; None before the first measurement, and if the last is older than FRESH_SECONDS."""
        return self._rate if self._clock() - self._measured <= FRESH_SECONDS else None

    def last_seconds(self, tokens: int) -> float:
        """How long this many tokens take at the last known pace, however old; 0 before the first measurement."""
        return tokens / self._rate if self._rate else 0.0

    def slice_tokens(self, seconds: float = SLICE_SECONDS) -> int:
        """Tokens of a batch that takes this long; LEAST_SLICE_TOKENS before the first measurement."""
        return max(LEAST_SLICE_TOKENS, int((self._rate or 0) * seconds))

    def seconds(self, tokens: int) -> float | None:
        """How long this many tokens take; None if that is not known."""
        rate = self.tokens_per_second
        return tokens / rate if rate else None

    def refusal(self, tokens: int, left: float) -> DeadlineUnreachable | None:
        """A refusal if a request that ends after `tokens` clearly misses its deadline in `left` seconds."""
        estimate = self.seconds(tokens)
        if estimate is None or estimate <= left * CLEARLY:
            return None
        # "deadline passed" is how clients distinguish deadlines from servers that are gone.
        return DeadlineUnreachable(
            f"it would end after its deadline passed: about {estimate:.1f} s of work at {tokens / estimate:,.0f} "
            f"tokens per second, and {max(left, 0.0):.1f} s are left"
        )
