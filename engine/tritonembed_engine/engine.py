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
import numpy.typing as npt

from tritonembed_engine.batcher import Batch, Batcher, Waiting
from tritonembed_engine.errors import DeadlineExceeded, EmbedError, EngineDead, ExecutionFailed, Overloaded
from tritonembed_engine.executors.base import Executor, Pending

Vectors = npt.NDArray[np.float32]
DEPTH = 2


@dataclass(frozen=True)
class BatchReport:
    """What one forward pass did. capacity: its token budget. queue_seconds: summed over requests that began in it."""

    sentences: int
    tokens: int
    capacity: int
    queue_seconds: float
    compute_seconds: float


class EmbeddingEngine:
    """Runs one executor. `submit` from any thread; `close` ends the thread and frees the model.

    max_waiting_sentences: beyond it `submit` raises Overloaded. clock: monotonic seconds. on_batch: called with a
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

    def submit(self, sentences: Sequence[bytes], deadline: float | None = None) -> "Future[Vectors]":
        """Embed the sentences of one request.

        sentences: each its ids as little-endian int32, checked by `token_ids.check_sentences`. deadline: on the clock.
        The future gives float32 [sentences, dimensions], not normalised, or raises DeadlineExceeded (passed before its
        turn) or EngineDead. Raises Overloaded at once where too much waits already.
        """
        request = _Request(sentences, deadline, arrived=self._clock())
        with self._changed:
            if self._closed:
                raise EngineDead("the engine is closed")
            if self._batcher.waiting_sentences + len(sentences) > self._max_waiting:
                raise Overloaded(f"more than {self._max_waiting} sentences are waiting")
            self._batcher.add(request)
            self._changed.notify()
        return request.future

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
            _fail_batch(batch, error)

    def _collect(self, batch: "Batch[_Request]", pending: Pending, start: float) -> None:
        try:
            vectors = pending.result()
        except Exception as error:
            _fail_batch(batch, error)
            return
        if self._on_batch:
            waited = sum(start - piece.request.arrived for piece in batch.pieces if piece.start == 0)
            seconds = self._clock() - start
            capacity = self.executor.max_batch_tokens
            self._on_batch(BatchReport(len(batch.sentences), batch.tokens, capacity, waited, seconds))
        first = 0
        for piece in batch.pieces:
            last = first + piece.stop - piece.start
            piece.request.place(vectors[first:last], piece.start)
            first = last


def _fail_batch(batch: "Batch[_Request]", error: Exception) -> None:
    if not isinstance(error, EmbedError):
        # The type alone: a message of torch or vLLM can hold paths.
        error = ExecutionFailed(f"a batch failed: {type(error).__name__}")
    for piece in batch.pieces:
        piece.request.fail(error)


@dataclass(eq=False)
class _Request(Waiting):
    """A request and its answer, while the pieces come in."""

    arrived: float = 0.0
    future: "Future[Vectors]" = field(default_factory=Future)
    placed: int = 0
    vectors: Vectors | None = None

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
