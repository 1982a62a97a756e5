"""Batches by token budget: what waits is taken at once; large requests are split, small ones merged.

Pure: no thread, no clock of its own. `engine.py` drives it.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from tritonembed_engine.token_ids import BYTES_PER_TOKEN

_SMALL = 0.5
"""A request of up to this part of a batch belongs to the smallest."""
_CLASS_RATIO = 8
"""Each class of sizes reaches this many times as far as the one before."""


@dataclass(eq=False)
class Waiting:
    """One request's sentences. deadline: on the clock that `take` is given; None never passes."""

    sentences: Sequence[bytes]
    deadline: float | None = None
    taken: int = 0
    failed: bool = False
    """Its answer is an error already: what is left of it is not computed."""
    is_abandoned: Callable[[], bool] | None = None
    """Whether its client is gone; asked before each batch that it would be part of."""
    order: int = 0
    """Its place among all that came."""
    size_class: int = 0
    """Its class of sizes; 0 are the smallest requests."""

    def is_over(self, now: float) -> bool:
        """Whether nothing more is to be computed for it."""
        if self.failed or (self.deadline is not None and self.deadline <= now):
            return True
        return self.is_abandoned is not None and self.is_abandoned()


Request = TypeVar("Request", bound=Waiting)


@dataclass(frozen=True)
class Piece(Generic[Request]):
    """Sentences start to stop (exclusive) of one waiting request."""

    request: Request
    start: int
    stop: int


@dataclass(frozen=True)
class Batch(Generic[Request]):
    """Sentences for one forward pass; at most `max_tokens` tokens, but for a single sentence that is longer."""

    pieces: list[Piece[Request]]
    sentences: list[bytes]
    tokens: int


def halves(batch: Batch[Request]) -> list[Batch[Request]]:
    """A batch of two sentences or more as two, of about as many sentences each."""
    middle = len(batch.sentences) // 2
    parts: list[Batch[Request]] = []
    for low, high in ((0, middle), (middle, len(batch.sentences))):
        pieces, first = [], 0
        for piece in batch.pieces:
            start, stop = max(low - first, 0), min(high - first, piece.stop - piece.start)
            if start < stop:
                pieces.append(Piece(piece.request, piece.start + start, piece.start + stop))
            first += piece.stop - piece.start
        sentences = batch.sentences[low:high]
        parts.append(Batch(pieces, sentences, sum(map(len, sentences)) // BYTES_PER_TOKEN))
    return parts


class Batcher(Generic[Request]):
    """First come, first served among requests of about one size; a small one need not wait for all of a huge one.

    The class of a request is given by its tokens: up to half a batch, up to 8 times that, up to 64 times, and so on.
    While requests of several classes wait, half of the work is for the oldest request of all, so that none starves, and
    the other half for the oldest one of the smallest class.

    max_tokens: the budget of one batch. max_sentences: its other bound (the executor's buffers). soft_tokens: a smaller
    budget, if there is one for the moment.
    """

    def __init__(self, max_tokens: int, max_sentences: int) -> None:
        self.max_tokens = max_tokens
        self.max_sentences = max_sentences
        self.soft_tokens: int | None = None
        self.waiting_sentences = 0
        self._queues: dict[int, deque[Request]] = {}
        """By class, the smallest first; none is empty."""
        self._bytes: dict[int, int] = {}
        """That wait, by class."""
        self._came = 0
        self._debt = 0
        """Bytes that smaller requests had before the oldest one, which has not had as many since."""

    def __bool__(self) -> bool:
        return bool(self._queues)

    @property
    def budget(self) -> int:
        """Tokens of the next batch."""
        return min(self.max_tokens, self.soft_tokens or self.max_tokens)

    @property
    def waiting_requests(self) -> int:
        """Requests that wait, one that is part done among them."""
        return sum(map(len, self._queues.values()))

    def add(self, request: Request) -> None:
        """Queue a request that has at least one sentence."""
        size = _size(request.sentences)
        self._came += 1
        request.order, request.size_class = self._came, self._class_of(size)
        if request.size_class not in self._queues:
            self._queues[request.size_class] = deque()
            self._queues = dict(sorted(self._queues.items()))
        self._queues[request.size_class].append(request)
        self._bytes[request.size_class] = self._bytes.get(request.size_class, 0) + size
        self.waiting_sentences += len(request.sentences)

    def tokens_until_done(self, sentences: Sequence[bytes]) -> int:
        """Tokens at least that are computed until a request with these sentences, if it came now, is done."""
        size = _size(sentences)
        limit = self._class_of(size)
        return (size + sum(waiting for key, waiting in self._bytes.items() if key <= limit)) // BYTES_PER_TOKEN

    def take(self, now: float) -> tuple[Batch[Request] | None, list[Request]]:
        """The next batch, or None if nothing waits, and the requests that are given up.

        Those are the ones whose deadline passed or whose client is gone, also after a part of them was computed.
        """
        pieces: list[Piece[Request]] = []
        sentences: list[bytes] = []
        given_up: list[Request] = []
        budget = self.budget
        room = budget * BYTES_PER_TOKEN
        while self._queues and len(sentences) < self.max_sentences:
            request, share = self._next()
            if request.is_over(now):
                self._drop(request)
                if not request.failed:
                    given_up.append(request)
                continue
            start = request.taken
            size = self._take_from(request, room, share, len(sentences))
            if request.taken == start:
                break
            room -= size
            pieces.append(Piece(request, start, request.taken))
            sentences.extend(request.sentences[start : request.taken])
            if request.taken == len(request.sentences):
                self._leave(request)
        if not pieces:
            return None, given_up
        return Batch(pieces, sentences, budget - room // BYTES_PER_TOKEN), given_up

    def drain(self) -> list[Request]:
        """Give up everything that waits."""
        waiting = sorted((one for queue in self._queues.values() for one in queue), key=lambda one: one.order)
        self._queues.clear()
        self._bytes.clear()
        self.waiting_sentences = self._debt = 0
        return waiting

    def _class_of(self, size: int) -> int:
        number, limit = 0, self.budget * BYTES_PER_TOKEN * _SMALL
        while size > limit:
            number, limit = number + 1, limit * _CLASS_RATIO
        return number

    def _next(self) -> tuple[Request, int | None]:
        """The request that gets the next part of a batch, and how many bytes of it; None: as many as there is room."""
        if len(self._queues) == 1:
            self._debt = 0
            return next(iter(self._queues.values()))[0], None
        heads = [queue[0] for queue in self._queues.values()]
        smallest, oldest = heads[0], min(heads, key=lambda request: request.order)
        if smallest is oldest:
            self._debt = 0
            return oldest, None
        share = int(self.budget * BYTES_PER_TOKEN * _SMALL) - self._debt
        return (smallest, share) if share > 0 else (oldest, None)

    def _take_from(self, request: Request, room: int, share: int | None, already: int) -> int:
        """Take the sentences of a request that fit, up to the one that completes its share; how many bytes."""
        start = stop = request.taken
        last = min(len(request.sentences), start + self.max_sentences - already)
        size = 0
        # A sentence over the budget goes alone.
        while stop < last and (share is None or size < share):
            longer = size + len(request.sentences[stop])
            if longer > room and (already or stop > start):
                break
            size, stop = longer, stop + 1
        request.taken = stop
        self.waiting_sentences -= stop - start
        self._bytes[request.size_class] -= size
        self._debt = max(0, self._debt - size) if share is None else self._debt + size
        return size

    def _drop(self, request: Request) -> None:
        self.waiting_sentences -= len(request.sentences) - request.taken
        self._bytes[request.size_class] -= _size(request.sentences[request.taken :])
        self._leave(request)

    def _leave(self, request: Request) -> None:
        queue = self._queues[request.size_class]
        queue.popleft()
        if not queue:
            del self._queues[request.size_class], self._bytes[request.size_class]


def _size(sentences: Iterable[bytes]) -> int:
    """Bytes."""
    return sum(map(len, sentences))
