"""`EmbeddingEngine`: requests in, futures of vectors out; one thread that keeps the executor busy.

While the device runs batch k, the thread prepares and launches k+1, and hands out k-1: at most `DEPTH` batches are
launched and not collected, so that what waits stays where it can still be dropped or overtaken.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from tritonembed_engine.batcher import Batch, Batcher, Waiting
from tritonembed_engine.errors import DeadlineExceeded, EmbedError, EngineDead, ExecutionFailed, Overloaded
from tritonembed_engine.executors.base import Executor, Pending
from tritonembed_engine.vectors import Vectors, normalized

DEPTH = 2


@dataclass(frozen=True)
class BatchReport:
    """What one forward pass did. capacity: its token budget. queue_seconds: summed over requests that began in it."""

    sentences: int
    tokens: int
    capacity: int
    queue_seconds: float
    compute_seconds: float


@dataclass(frozen=True)
class Job:
    """The arguments of `EmbeddingEngine.submit`."""

    sentences: Sequence[bytes]
    deadline: float | None = None
    normalize: bool = False


class EmbeddingEngine:
    """Runs one executor. `submit` from any thread; `close` ends the thread and frees the model.

    max_waiting_sentences: beyond it requests fail with Overloaded. clock: monotonic seconds. on_batch: called with a
    report of each batch that was computed.
    """

    def __init__(
        self,
        executor: Executor,
        max_waiting_sentences: int = 65536,
        clock: Callable[[], float] = time.monotonic,
        on_batch: Callable[[BatchReport], None] | None = None,
    ) -> None:
        self.executor = executor
        self._max_waiting = max_waiting_sentences
        self._clock = clock
        self._on_batch = on_batch
        self._batcher: Batcher[_Request] = Batcher(executor.max_batch_tokens, executor.max_batch_sentences)
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="embedding-engine", daemon=True)
        self._thread.start()

    def submit(
        self, sentences: Sequence[bytes], deadline: float | None = None, normalize: bool = False
    ) -> "Future[Vectors]":
        """Embed the sentences of one request.

        sentences: each its ids as little-endian int32, checked by `token_ids`. deadline: on the engine's clock.
        normalize: whether the vectors come with length 1. The future gives float32 [sentences, dimensions], or raises
        Overloaded (too much waits already), DeadlineExceeded (before its turn), ExecutionFailed or EngineDead.
        """
        return self.submit_all([Job(sentences, deadline, normalize)])[0]

    def submit_all(self, jobs: "Sequence[Job]") -> "list[Future[Vectors]]":
        """Like `submit`, for requests that came together, so that they can share the first batch too."""
        if not all(job.sentences for job in jobs):
            raise ValueError("a request needs at least one sentence")
        now = self._clock()
        requests = [_Request(job.sentences, job.deadline, normalize=job.normalize, arrived=now) for job in jobs]
        with self._changed:
            if self._closed:
                raise EngineDead("the engine is closed")
            for request in requests:
                if self._batcher.waiting_sentences + len(request.sentences) > self._max_waiting:
                    request.fail(Overloaded(f"more than {self._max_waiting} sentences are waiting"))
                else:
                    self._batcher.add(request)
            self._changed.notify()
        return [request.future for request in requests]

    def close(self) -> None:
        """Finish what runs, fail what waits, free the model."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            for request in self._batcher.drain():
                request.fail(EngineDead("the engine is closed"))
            self._changed.notify()
        self._thread.join()
        self.executor.close()

    def _run(self) -> None:
        launched: deque[tuple[Batch[_Request], Pending, float]] = deque()
        while True:
            with self._changed:
                while not (self._batcher or launched or self._closed):
                    self._changed.wait()
                if self._closed and not launched and not self._batcher:
                    return
                batch, expired = self._batcher.take(self._clock())
                for request in expired:
                    request.fail(DeadlineExceeded("deadline passed before its turn"))
            if batch is not None:
                self._launch(batch, launched)
            if launched and (batch is None or len(launched) >= DEPTH):
                self._collect(*launched.popleft())

    def _launch(self, batch: "Batch[_Request]", launched: "deque[tuple[Batch[_Request], Pending, float]]") -> None:
        start = self._clock()
        try:
            launched.append((batch, self.executor.launch(batch.sentences), start))
        except Exception as error:
            self._fail_batch(batch, error)

    def _collect(self, batch: "Batch[_Request]", pending: Pending, start: float) -> None:
        try:
            vectors = pending.result()
            if len(vectors) != len(batch.sentences):
                raise ExecutionFailed("the executor gave another number of vectors than it got sentences")
        except Exception as error:
            self._fail_batch(batch, error)
            return
        if self._on_batch:
            waited = sum(start - piece.request.arrived for piece in batch.pieces if piece.start == 0)
            seconds = self._clock() - start
            capacity = self.executor.max_batch_tokens
            self._on_batch(BatchReport(len(batch.sentences), batch.tokens, capacity, waited, seconds))
        # Once for the whole batch: at one sentence a request, numpy's cost a call is what counts.
        unit = normalized(vectors) if any(piece.request.normalize for piece in batch.pieces) else vectors
        first = 0
        for piece in batch.pieces:
            last = first + piece.stop - piece.start
            piece.request.place((unit if piece.request.normalize else vectors)[first:last], piece.start)
            first = last

    def _fail_batch(self, batch: "Batch[_Request]", error: Exception) -> None:
        if not isinstance(error, EmbedError):
            # The type alone: a message of torch or vLLM can hold paths.
            error = ExecutionFailed(f"a batch failed: {type(error).__name__}")
        # `close` may be failing the rest of the same request.
        with self._changed:
            for piece in batch.pieces:
                piece.request.fail(error)


@dataclass(eq=False)
class _Request(Waiting):
    """A request and its answer, while the pieces come in."""

    normalize: bool = False
    arrived: float = 0.0
    future: "Future[Vectors]" = field(default_factory=Future)
    placed: int = 0
    vectors: Vectors | None = None

    def __post_init__(self) -> None:
        # A future that runs can't be cancelled: its answer would find it closed, and the engine's thread would end.
        self.future.set_running_or_notify_cancel()

    def place(self, vectors: Vectors, start: int) -> None:
        """Take the vectors of the sentences from `start` on."""
        if self.failed:
            return
        if len(vectors) == len(self.sentences):
            self.future.set_result(vectors)
            return
        if self.vectors is None:
            self.vectors = np.empty((len(self.sentences), vectors.shape[1]), dtype=np.float32)
        self.vectors[start : start + len(vectors)] = vectors
        self.placed += len(vectors)
        if self.placed == len(self.sentences):
            self.future.set_result(self.vectors)

    def fail(self, error: Exception) -> None:
        """Answer with an error; what is still queued of it is skipped."""
        if not self.failed:
            self.failed = True
            self.future.set_exception(error)
