"""A request from its arrival to its answer, and the batches that are made of requests."""

import threading
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tritonembed_engine.ragged import Ragged
from tritonembed_engine.token_ids import Spans, TokenIds
from tritonembed_engine.vectors import Vectors

Choices = Mapping[str, npt.NDArray[np.bool_]]
"""The tokens of which each output is made: bool [tokens], by output."""
TokenOutputs = Mapping[str, Ragged]
"""The rows of each sentence, by output."""
Key = tuple[str, int, bytes, str | None]
"""The key of a sentence's vector: a salt, the tokens at its start that are not pooled, its ids, its adapter."""
Adapted = Sequence[tuple[str, int, int]]
"""An adapter, and the first row and the row after the last to which it applies, in order. Other rows have none."""
NO_CHOICES: Choices = {}
NO_TOKEN_OUTPUTS: TokenOutputs = {}

_FUTURES = threading.Lock()
"""Held while a request gets a future and while it ends, so that no future misses the end."""


@dataclass(eq=False)
class Request:
    """What a request asks for, its progress, and its answer. Times are on the engine's clock."""

    sentences: TokenIds
    deadline: float | None = None
    normalize: bool = False
    """Whether the vectors come with length 1."""
    is_abandoned: Callable[[], bool] | None = None
    """Returns whether its client is gone; called on the engine's thread before each batch with a part of the
    request."""
    skip: int = 0
    """Tokens at the start of each sentence that are not pooled."""
    spans: Spans | None = None
    """The spans that are pooled instead of whole sentences; then the answer has a vector per span."""

    choices: Choices = field(default_factory=dict)
    """The outputs per token that it asks for, and the tokens of which each is made."""
    keys: Sequence[Key] | None = None
    """The keys of its sentences; None if they are computed anew, as for spans and outputs per token, which are not
    kept."""

    adapter: str | None = None
    """The adapter of all its sentences; None: the base model."""

    is_check: bool = False
    """Whether it is a health check, for which no caller waits."""

    answer: Vectors | None = None
    """float32 [sentences or spans, dimensions]."""
    error: Exception | None = None
    """What the request gets instead of an answer."""
    done: bool = False
    """Whether there is an answer or an error."""
    arrived: float = 0.0
    launched: float = 0.0
    """The launch of the batch with its first sentence; set when that batch has its result."""

    order: int = 0
    """Its number in the order of arrival."""
    size_class: int = 0
    """0 for the smallest requests; see `Batcher`."""
    lengths: list[int] = field(init=False)
    """Tokens of each sentence."""
    tokens: int = field(init=False)
    """Tokens of all sentences."""
    taken: int = 0
    """Sentences that were taken into batches."""
    reported: int = 0
    """Sentences in batches that were reported; a batch can have two pieces of one request."""
    placed: int = 0
    """The number of vectors that are there."""
    vectors: Vectors | None = None
    token_outputs: TokenOutputs = field(default_factory=dict)
    """The outputs that `choices` names; complete when `answer` is there."""
    parts: list[tuple[int, TokenOutputs]] = field(default_factory=list)
    """Token outputs of some of its sentences, and the number of the first of these."""

    def __post_init__(self) -> None:
        self.lengths = self.sentences.lengths.tolist()
        self.tokens = self.sentences.tokens
        if self.spans is not None or self.choices:
            self.keys = None
        self._future: Future[Vectors] | None = None

    @property
    def future(self) -> "Future[Vectors]":
        """Gets the answer or the error. Made on demand, because a future costs as much as all else of a request."""
        with _FUTURES:
            if self._future is None:
                self._future = Future()
                # A running future can't be cancelled: an answer that finds its future cancelled would end the engine's
                # thread.
                self._future.set_running_or_notify_cancel()
                if self.done:
                    self._settle(self._future)
            return self._future

    @property
    def failed(self) -> bool:
        """Whether the answer is an error, so that the rest is not computed."""
        return self.error is not None

    def result(self) -> Vectors:
        """Wait for the answer. Raises the request's error."""
        if not self.done:
            return self.future.result()
        if self.error is not None:
            raise self.error
        assert self.answer is not None
        return self.answer

    def is_over(self, now: float) -> bool:
        """Whether no more is to be computed for it."""
        if self.failed or (self.deadline is not None and self.deadline <= now):
            return True
        return self.is_abandoned is not None and self.is_abandoned()

    def rows(self, stop: int) -> int:
        """Vectors of the sentences before `stop`."""
        return stop if self.spans is None else int(self.spans.counts[:stop].sum())

    def place(self, vectors: Vectors, start: int, found: TokenOutputs = NO_TOKEN_OUTPUTS) -> None:
        """Take the vectors of the sentences from `start` on; the last ones complete the answer. found: `choices`'."""
        if self.failed:
            return
        if self.choices:
            self.parts.append((start, found))
        rows = self.rows(len(self.lengths))
        if len(vectors) == rows:
            self._complete(vectors)
            return
        if self.vectors is None:
            self.vectors = np.empty((rows, vectors.shape[1]), dtype=np.float32)
        first = self.rows(start)
        self.vectors[first : first + len(vectors)] = vectors
        self.placed += len(vectors)
        if self.placed == rows:
            self._complete(self.vectors)

    def _complete(self, vectors: Vectors) -> None:
        self.parts.sort(key=lambda part: part[0])
        self.token_outputs = {
            name: Ragged.concatenate([found[name] for _, found in self.parts]) for name in self.choices
        }
        self.parts.clear()
        self.answer = vectors
        self._finish()

    def fail(self, error: Exception) -> None:
        """Answer with an error, unless it was answered; its sentences that still wait are skipped."""
        if not self.done:
            self.error = error
            self._finish()

    def _finish(self) -> None:
        with _FUTURES:
            self.done = True
            future = self._future
        if future is not None:
            self._settle(future)

    def _settle(self, future: "Future[Vectors]") -> None:
        if self.error is not None:
            future.set_exception(self.error)
        elif self.answer is not None:
            future.set_result(self.answer)


@dataclass(frozen=True)
class Piece:
    """Sentences start to stop (exclusive) of one request."""

    request: Request
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Vectors of these sentences."""
        return self.request.rows(self.stop) - self.request.rows(self.start)

    def choice(self, name: str) -> npt.NDArray[np.bool_]:
        """The tokens of these sentences of which an output is made; none if the request does not ask for it."""
        lengths = self.request.sentences.lengths
        first = int(lengths[: self.start].sum())
        last = first + int(lengths[self.start : self.stop].sum())
        chosen = self.request.choices.get(name)
        return np.zeros(last - first, np.bool_) if chosen is None else chosen[first:last]


@dataclass(frozen=True)
class Batch:
    """Pieces for one forward pass. sentences, tokens: how many there are in all pieces."""

    pieces: list[Piece]
    sentences: int
    tokens: int

    def join(self) -> TokenIds:
        """The sentences of all pieces."""
        return TokenIds.concatenate([piece.request.sentences.cut(piece.start, piece.stop) for piece in self.pieces])

    def skips(self) -> list[int] | None:
        """Tokens at the start of each sentence that are not pooled; None if all tokens are."""
        if not any(piece.request.skip for piece in self.pieces):
            return None
        return [piece.request.skip for piece in self.pieces for _ in range(piece.start, piece.stop)]

    def spans(self) -> Spans | None:
        """The spans to pool of every sentence; None if whole sentences are pooled, without `skips`."""
        if all(piece.request.spans is None for piece in self.pieces):
            return None
        return Spans.concatenate([_spans_of(piece) for piece in self.pieces])

    def choices(self) -> Choices | None:
        """The outputs per token that any request asks for; None if none does."""
        names = sorted({name for piece in self.pieces for name in piece.request.choices})
        return {name: np.concatenate([piece.choice(name) for piece in self.pieces]) for name in names} or None

    def keys(self) -> list[Key | None] | None:
        """The key of each sentence; None if none has one, or if an answer has other rows than a vector per sentence."""
        found: list[Key | None] = []
        is_any = False
        for piece in self.pieces:
            request = piece.request
            if request.spans is not None or request.choices:
                return None
            if request.keys is None:
                found += [None] * (piece.stop - piece.start)
            else:
                found += request.keys[piece.start : piece.stop]
                is_any = True
        return found if is_any else None

    def adapted(self) -> Adapted:
        """The sentences that have an adapter."""
        if all(piece.request.adapter is None for piece in self.pieces):
            return ()
        found: list[tuple[str, int, int]] = []
        first = 0
        for piece in self.pieces:
            end, adapter = first + piece.stop - piece.start, piece.request.adapter
            if adapter is not None:
                if found and found[-1][0] == adapter and found[-1][2] == first:
                    first = found.pop()[1]
                found.append((adapter, first, end))
            first = end
        return found

    @property
    def rows(self) -> int:
        """Vectors of all pieces."""
        return sum(piece.rows for piece in self.pieces)

    def halves(self) -> "list[Batch]":
        """A batch of two sentences or more, divided into two of about as many sentences."""
        middle = self.sentences // 2
        parts: list[Batch] = []
        for low, high in ((0, middle), (middle, self.sentences)):
            pieces, first = [], 0
            for piece in self.pieces:
                start, stop = max(low - first, 0), min(high - first, piece.stop - piece.start)
                if start < stop:
                    pieces.append(Piece(piece.request, piece.start + start, piece.start + stop))
                first += piece.stop - piece.start
            tokens = sum(sum(piece.request.lengths[piece.start : piece.stop]) for piece in pieces)
            parts.append(Batch(pieces, high - low, tokens))
        return parts


def of_chosen(adapted: Adapted, chosen: Sequence[int]) -> Adapted:
    """The same rows if only some of them are there. chosen: their numbers, in order."""
    bounds = [(name, bisect_left(chosen, first), bisect_left(chosen, end)) for name, first, end in adapted]
    return [(name, first, end) for name, first, end in bounds if first < end]


def _spans_of(piece: Piece) -> Spans:
    request = piece.request
    if request.spans is None:
        return Spans.whole(request.lengths[piece.start : piece.stop], request.skip)
    return request.spans.cut(piece.start, piece.stop)


class CacheReport(NamedTuple):
    """What the cache did for the sentences of a batch.

    hits: found there. shared: equal to a sentence that is computed for another place. misses: computed. evictions:
    entries that made room. bytes: the cache's growth."""

    hits: int = 0
    shared: int = 0
    misses: int = 0
    evictions: int = 0
    bytes: int = 0


NO_CACHE = CacheReport()


@dataclass(frozen=True)
class BatchReport:
    """The report of a forward pass. capacity: its token budget. compute_seconds: from its launch to its result.

    sentences, tokens: computed; 0 if all vectors came from the cache, and then there was no forward pass.
    requests: how many it completed. Summed over these: queue_seconds, until the first batch of a request was launched,
    and request_compute_seconds, from then to its vectors.
    """

    sentences: int
    tokens: int
    capacity: int
    compute_seconds: float
    requests: int
    queue_seconds: float
    request_compute_seconds: float
    cache: CacheReport = NO_CACHE


def report(
    batch: Batch, sentences: TokenIds, capacity: int, start: float, now: float, cache: CacheReport = NO_CACHE
) -> BatchReport:
    """The report of a batch that was launched at `start` and has its result now. To be called once per batch.

    sentences: those of it that were computed.
    """
    requests, waited, computed = 0, 0.0, 0.0
    for piece in batch.pieces:
        request = piece.request
        if piece.start == 0:
            request.launched = start
        request.reported += piece.stop - piece.start
        if request.reported == len(request.lengths) and not request.failed:
            requests += 1
            waited += request.launched - request.arrived
            computed += now - request.launched
    return BatchReport(len(sentences), sentences.tokens, capacity, now - start, requests, waited, computed, cache)
