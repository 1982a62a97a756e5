"""`EmbeddingEngine`: requests in, futures of vectors out; one thread at a time keeps the executor busy.

While a GPU runs batch k, the thread prepares and launches batch k+1 and delivers the vectors of k-1. At most the
executor's `depth` of batches is launched and not collected: requests that wait can still be dropped or overtaken. The
thread is the engine's own, or a caller's that only waits for its answer, which saves two switches of threads.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tritonembed_engine.batching import MIXED_SLICE_SECONDS, Batcher, Mix, Pace
from tritonembed_engine.cache import Lost, Plan, VectorCache
from tritonembed_engine.errors import (
    Abandoned,
    DeadlineExceeded,
    DeviceLost,
    EmbedError,
    EngineDead,
    ExecutionFailed,
    OutOfMemory,
    Overloaded,
)
from tritonembed_engine.executors.base import Executor, Pending, Ready
from tritonembed_engine.request import (
    NO_CACHE,
    Batch,
    BatchReport,
    CacheReport,
    Piece,
    Request,
    TokenOutputs,
    of_chosen,
    report,
)
from tritonembed_engine.token_ids import TokenIds
from tritonembed_engine.vectors import Vectors, normalized, norms_of

REST_AFTER_S = 1.0
"""The executor frees cached memory after this long without work."""

logger = logging.getLogger(__name__)


class Load(NamedTuple):
    """The work before an engine: waiting requests, requests of which a part is being computed, and seconds of work.

    A request can be in both numbers. The seconds are those by which `Pace` refuses deadlines, but they don't expire; 0
    before a measurement.
    """

    queued: int
    running: int
    seconds: float


@dataclass(frozen=True, slots=True)
class _Launched:
    """A batch at the executor. sentences: those to compute. plan: the sources of the other vectors, if any."""

    batch: Batch
    sentences: TokenIds
    plan: Plan | None
    pending: Pending
    start: float


class EmbeddingEngine:
    """Runs one executor. `submit` from any thread; `close` ends the thread and frees the model.

    max_waiting_sentences, max_waiting_requests: beyond them requests fail with Overloaded. clock: monotonic seconds.
    on_batch: called with a report of each batch that was computed. on_death: called when the device is lost and every
    request was answered; the process has to be started again. cache: of vectors of requests with keys; None for none.

    A batch that does not fit the device's memory is computed in halves, and later batches have at most half its tokens.
    Batches of an executor that blocks are kept short (see `Pace`), so that other requests get in between; those of any
    executor are shorter still while small and large requests are mixed.
    """

    def __init__(
        self,
        executor: Executor,
        max_waiting_sentences: int = 65536,
        clock: Callable[[], float] = time.monotonic,
        on_batch: Callable[[BatchReport], None] | None = None,
        on_death: Callable[[], None] | None = None,
        rest_after: float = REST_AFTER_S,
        max_waiting_requests: int = 4096,
        cache: VectorCache | None = None,
    ) -> None:
        self.executor = executor
        self.cache = cache
        self._max_sentences = max_waiting_sentences
        self._max_requests = max_waiting_requests
        self._clock = clock
        self._on_batch = on_batch
        self._on_death = on_death
        self._rest_after = rest_after
        self._batcher: Batcher = Batcher(executor.max_batch_tokens, executor.max_batch_sentences)
        self._pace = Pace(clock)
        self._mix = Mix()
        self._shorten_batches(clock())
        self._changed = threading.Condition()
        # Held by the thread that launches and collects.
        self._driving = threading.Lock()
        self._closed: EngineDead | None = None
        self._launched: deque[_Launched] = deque()
        self._at_hand: Batch | None = None
        """The batch that is being launched or collected."""
        self._thread = threading.Thread(target=self._run, name="embedding-engine", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> bool:
        """Whether any request waits for its turn."""
        return bool(self._batcher)

    def load(self) -> Load:
        """The waiting work and the work in progress. May be called from any thread."""
        with self._changed:
            queued, tokens = self._batcher.waiting_requests, self._batcher.waiting_tokens
            batches = self._batches()
        running = {id(piece.request) for batch in batches for piece in batch.pieces}
        tokens += sum(batch.tokens for batch in batches)
        return Load(queued, len(running), self._pace.last_seconds(tokens))

    def is_short(self, requests: Sequence[Request]) -> bool:
        """Whether these and all before them take MIXED_SLICE_SECONDS at most, at the last measured speed.

        False before a measurement.
        """
        with self._changed:
            tokens = self._batcher.waiting_tokens + sum(batch.tokens for batch in self._batches())
        tokens += sum(request.tokens for request in requests)
        return 0 < self._pace.last_seconds(tokens) <= MIXED_SLICE_SECONDS

    def splits(self, requests: Sequence[Request]) -> bool:
        """Whether one of these is more than a batch."""
        return any(request.tokens > self._batcher.budget for request in requests)

    def submit(
        self, sentences: Sequence[bytes], deadline: float | None = None, normalize: bool = False
    ) -> "Future[Vectors]":
        """Embed the sentences of one request.

        sentences: the ids of each as little-endian int32, checked (see `TokenIdLimits`). deadline: on the engine's
        clock. normalize: whether the vectors come with length 1. The future gives float32 [sentences, dimensions], or
        raises Overloaded (too much waits), DeadlineUnreachable (at once), DeadlineExceeded (the rest of the request is
        not computed), ExecutionFailed, or EngineDead.
        """
        return self.submit_all([Request(TokenIds.join(sentences), deadline, normalize)])[0]

    def submit_all(self, requests: Sequence[Request], *, wait: bool = False) -> "list[Future[Vectors]]":
        """Like `add`. Returns the requests' futures."""
        self.add(requests, wait=wait)
        return [request.future for request in requests]

    def add(self, requests: Sequence[Request], *, wait: bool = False) -> None:
        """Like `submit`, for requests that came together and can share a batch.

        wait: the caller only waits for the answers; its thread then does the work if the executor allows it.
        """
        if not all(request.lengths for request in requests):
            raise ValueError("a request needs at least one sentence")
        now = self._clock()
        new = requests if self.cache is None else [each for each in requests if not self._answer(each, self.cache)]
        if not new:
            return
        with self._changed:
            for request in new:
                request.arrived = now
                refusal = self._refusal(request, now)
                if refusal is None:
                    if not request.is_check:
                        self._mix.saw(request.tokens, now)
                    self._batcher.add(request)
                else:
                    request.fail(refusal)
        if not (wait and self.executor.on_any_thread and self._drive(new)):
            self._wake()

    def close(self) -> None:
        """Finish what runs, fail what waits, free the model."""
        self._end(EngineDead("the engine is closed"))
        self._thread.join()
        with self._driving:
            self.executor.close()

    def _batches(self) -> list[Batch]:
        """The batches in progress."""
        at_hand = self._at_hand
        return [each.batch for each in self._launched] + ([] if at_hand is None else [at_hand])

    def _answer(self, request: Request, cache: VectorCache) -> bool:
        """Answer a request at once if all of its vectors are in the cache. Returns whether it was answered."""
        vectors = None if self._closed or not request.keys else cache.vectors(request.keys)
        if vectors is None:
            return False
        request.place(normalized(vectors) if request.normalize else vectors, 0)
        if self._on_batch:
            self._on_batch(BatchReport(0, 0, 0, 0.0, 1, 0.0, 0.0, CacheReport(hits=len(vectors))))
        return True

    def _refusal(self, request: Request, now: float) -> EmbedError | None:
        """Why a request is refused, or None."""
        batcher = self._batcher
        if self._closed:
            return self._closed
        if batcher.waiting_sentences + len(request.lengths) > self._max_sentences:
            return Overloaded(f"more than {self._max_sentences} sentences are waiting")
        if batcher.waiting_requests >= self._max_requests:
            return Overloaded(f"more than {self._max_requests} requests are waiting")
        if request.deadline is None:
            return None
        return self._pace.refusal(batcher.tokens_until_done(request.tokens), request.deadline - now)

    def _shorten_batches(self, now: float) -> None:
        batcher, depth = self._batcher, self.executor.depth
        batcher.apart = self._mix.holds(now)
        if batcher.apart:
            batcher.soft_tokens = self._pace.slice_tokens(MIXED_SLICE_SECONDS / depth)
        else:
            batcher.soft_tokens = self._pace.slice_tokens() if depth == 1 else None

    def _end(self, reason: EngineDead) -> bool:
        """Refuse new requests and fail those that wait. False if the engine was ended before."""
        with self._changed:
            if self._closed:
                return False
            self._closed = reason
            for request in self._batcher.drain():
                request.fail(reason)
            self._changed.notify()
            return True

    def _run(self) -> None:
        while True:
            with self._changed:
                idle = not self._changed.wait_for(self._has_work, self._rest_after)
            if idle:
                with self._driving:
                    self.executor.rest()
            with self._changed:
                self._changed.wait_for(self._has_work)
                if self._closed and not self._launched and not self._batcher:
                    return
            with self._driving:
                self._step()

    def _drive(self, requests: Sequence[Request]) -> bool:
        """Work on this thread until the requests are answered. False if another thread works."""
        if not self._driving.acquire(blocking=False):
            return False
        try:
            while not all(request.done for request in requests):
                self._step()
        finally:
            self._driving.release()
        if self._has_work():
            self._wake()
        return True

    def _step(self) -> None:
        """Launch the next batch, if any request waits, and collect the oldest one if enough are launched."""
        with self._changed:
            now = self._clock()
            self._shorten_batches(now)
            batch, given_up = self._batcher.take(now)
            for request in given_up:
                late = request.deadline is not None and request.deadline <= now
                request.fail(_late(request) if late else Abandoned("the client is gone"))
        if batch is not None:
            self._launch(batch)
        if self._launched and (batch is None or len(self._launched) >= self.executor.depth):
            self._collect(self._launched.popleft())

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify()

    def _has_work(self) -> bool:
        return bool(self._batcher or self._launched or self._closed)

    def _launch(self, batch: Batch) -> None:
        start = self._clock()
        self._at_hand = batch
        try:
            plan = self._plan(batch)
            spans = batch.spans()
            # Spans leave out what `skips` would.
            skips = batch.skips() if spans is None else None
            sentences, adapted = batch.join(), batch.adapted()
            if plan is not None:
                sentences = plan.sentences(sentences)
                skips = skips and [skips[number] for number in plan.computed]
                adapted = adapted and of_chosen(adapted, plan.computed)
            if sentences:
                pending = self.executor.launch(sentences, skips, spans, batch.choices(), adapted)
            else:
                pending = Ready(np.empty((0, self.executor.dimensions), np.float32))
            self._launched.append(_Launched(batch, sentences, plan, pending, start))
            self._at_hand = None
        except Exception as error:
            self._at_hand = None
            self._recover(batch, error)

    def _plan(self, batch: Batch) -> Plan | None:
        if self.cache is None:
            return None
        # They are collected in order.
        return self.cache.plan(batch, [each.plan for each in self._launched if each.plan is not None])

    def _collect(self, launched: _Launched) -> None:
        batch, plan = launched.batch, launched.plan
        self._at_hand = batch
        try:
            vectors = launched.pending.result()
            self._at_hand = None
            if len(vectors) != (batch.rows if plan is None else len(plan.computed)):
                raise ExecutionFailed("the executor returned a wrong number of vectors")
            if plan is not None:
                vectors = plan.fill(vectors)
        except Lost:
            self._at_hand = None
            self._compute_alone([batch])
            return
        except Exception as error:
            self._at_hand = None
            self._recover(batch, error)
            return
        try:
            self._deliver(launched, vectors)
        except Exception as error:
            self._give_up(batch, error)

    def _deliver(self, launched: _Launched, vectors: Vectors) -> None:
        batch, plan, start = launched.batch, launched.plan, launched.start
        token_outputs = launched.pending.token_outputs
        budget = self._batcher.budget
        self._pace.batch_done(launched.sentences.tokens, budget, start)
        # Once for the whole batch: at one sentence per request, numpy's cost per call dominates.
        norms = norms_of(vectors)
        unit = normalized(vectors, norms) if any(piece.request.normalize for piece in batch.pieces) else vectors
        finite = np.isfinite(norms)
        all_finite = bool(finite.all())
        cached = NO_CACHE
        if self.cache is not None and plan is not None:
            cached = self.cache.keep(plan) if all_finite else plan.report()
        if self._on_batch:
            self._on_batch(report(batch, launched.sentences, budget, start, self._clock(), cached))
        first = sentence = 0
        for piece in batch.pieces:
            last = first + piece.rows
            found = _cut(token_outputs, piece, sentence) if piece.request.choices else {}
            sentence += piece.stop - piece.start
            if (all_finite or finite[first:last].all()) and all(part.is_finite() for part in found.values()):
                piece.request.place((unit if piece.request.normalize else vectors)[first:last], piece.start, found)
            else:
                with self._changed:
                    piece.request.fail(ExecutionFailed("the model computed a vector that is not finite"))
            first = last

    def _recover(self, batch: Batch, error: Exception) -> None:
        """Compute the batch in halves if it was too large; else fail it, and all others if the device is lost."""
        try:
            problem = self.executor.explain(error)
        except Exception as unexpected:
            self._give_up(batch, unexpected)
            return
        if isinstance(problem, OutOfMemory) and batch.sentences > 1:
            self._batcher.max_tokens = min(self._batcher.max_tokens, max(batch.tokens // 2, 1))
            logger.warning(
                "out of memory at %d tokens: later batches have at most %d", batch.tokens, self._batcher.max_tokens
            )
            # Other batches on the device have to end before there is room.
            self._compute_alone(batch.halves())
            return
        self._fail(batch, problem)
        if isinstance(problem, DeviceLost):
            self._die(problem)

    def _compute_alone(self, batches: Sequence[Batch]) -> None:
        """Compute batches one by one, when all others are done."""
        while self._launched:
            self._collect(self._launched.popleft())
        for batch in batches:
            self._launch(batch)
            if self._launched:
                self._collect(self._launched.popleft())

    def _give_up(self, batch: Batch, error: Exception) -> None:
        """Fail every request after a defect of the engine itself, and let the process start again."""
        logger.error("the engine failed", exc_info=error)
        problem = EngineDead(f"the engine failed ({type(error).__name__})")
        self._fail(batch, problem)
        self._die(problem)

    def _fail(self, batch: Batch, problem: Exception) -> None:
        # `_end` may be failing the rest of the same request.
        with self._changed:
            for piece in batch.pieces:
                piece.request.fail(problem)

    def _die(self, problem: EngineDead) -> None:
        if self._end(problem):
            for other in self._launched:
                self._fail(other.batch, problem)
            self._launched.clear()
            if self._on_death:
                self._on_death()


def _cut(token_outputs: TokenOutputs, piece: Piece, first: int) -> TokenOutputs:
    """The outputs that a piece's request asks for. first: the place of the piece's first sentence in the batch."""
    last = first + piece.stop - piece.start
    return {name: token_outputs[name].cut(first, last) for name in piece.request.choices}


def _late(request: Request) -> DeadlineExceeded:
    return DeadlineExceeded(f"deadline passed before its {'end' if request.taken else 'turn'}")
