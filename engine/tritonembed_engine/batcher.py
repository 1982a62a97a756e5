"""Batches by token budget: what waits is taken at once; large requests are split, small ones merged.

Pure: no thread, no clock of its own. `engine.py` drives it.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from tritonembed_engine.token_ids import BYTES_PER_TOKEN


@dataclass(eq=False)
class Waiting:
    """One request's sentences. deadline: on the clock that `take` is given; None never passes."""

    sentences: Sequence[bytes]
    deadline: float | None = None
    taken: int = 0
    failed: bool = False
    """Its answer is an error already: what is left of it is not computed."""


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
    """First come, first served, over sentences rather than requests.

    max_tokens: the budget of one batch. max_sentences: its other bound (the executor's buffers).
    """

    def __init__(self, max_tokens: int, max_sentences: int) -> None:
        self.max_tokens = max_tokens
        self.max_sentences = max_sentences
        self.waiting_sentences = 0
        self._queue: deque[Request] = deque()

    def __bool__(self) -> bool:
        return bool(self._queue)

    @property
    def waiting_requests(self) -> int:
        """Requests that wait, one that is part done among them."""
        return len(self._queue)

    def add(self, request: Request) -> None:
        """Queue a request that has at least one sentence."""
        self._queue.append(request)
        self.waiting_sentences += len(request.sentences)

    def take(self, now: float) -> tuple[Batch[Request] | None, list[Request]]:
        """The next batch, or None where nothing waits, and the requests whose deadline passed before their turn."""
        pieces: list[Piece[Request]] = []
        sentences: list[bytes] = []
        expired: list[Request] = []
        room = self.max_tokens * BYTES_PER_TOKEN
        while self._queue and len(sentences) < self.max_sentences:
            request = self._queue[0]
            late = request.deadline is not None and request.deadline <= now
            if late or request.failed:
                self._queue.popleft()
                self.waiting_sentences -= len(request.sentences) - request.taken
                if not request.failed:
                    expired.append(request)
                continue
            start = stop = request.taken
            last = min(len(request.sentences), start + self.max_sentences - len(sentences))
            while stop < last and (len(request.sentences[stop]) <= room or not (sentences or stop > start)):
                room -= len(request.sentences[stop])
                stop += 1
            if stop == start:
                break
            pieces.append(Piece(request, start, stop))
            sentences.extend(request.sentences[start:stop])
            request.taken = stop
            self.waiting_sentences -= stop - start
            if stop < len(request.sentences):
                break
            self._queue.popleft()
        if not pieces:
            return None, expired
        return Batch(pieces, sentences, self.max_tokens - room // BYTES_PER_TOKEN), expired

    def drain(self) -> list[Request]:
        """Give up everything that waits."""
        waiting = list(self._queue)
        self._queue.clear()
        self.waiting_sentences = 0
        return waiting
