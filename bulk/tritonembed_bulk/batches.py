"""A part's sentences as batches for an executor, always the same ones, and a thread that keeps the executor busy.

A part that is computed again has to give the same bits. So bulk does not use `EmbeddingEngine`, which mixes waiting
requests, and adapts the size of batches to their time.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from tritonembed_engine.executors.base import Executor, Pending
    from tritonembed_engine.token_ids import TokenIds

Vectors = npt.NDArray[np.float32]
Places = npt.NDArray[np.intp]

logger = logging.getLogger(__name__)


def batches_of(lengths: npt.NDArray[np.int32], max_tokens: int, max_sentences: int) -> Iterator[Places]:
    """The sentences of each batch: sorted by length, so that a batch has sentences of about one length.

    lengths: int32 [sentences], in tokens. A sentence with more than `max_tokens` is alone in its batch.
    """
    order = np.argsort(lengths, kind="stable")
    ends = np.cumsum(lengths[order], dtype=np.int64)
    start = 0
    while start < len(order):
        before = int(ends[start - 1]) if start else 0
        stop = int(np.searchsorted(ends, before + max_tokens, side="right"))
        stop = min(max(stop, start + 1), start + max_sentences)
        yield order[start:stop]
        start = stop


@dataclass(eq=False)
class Job:
    """The sentences of one part. skip: tokens at the start of each that are not pooled."""

    sentences: TokenIds
    skip: int
    vectors: Vectors
    starts: npt.NDArray[np.int64]
    future: Future[tuple[Vectors, float]] = field(default_factory=Future)
    busy: float = 0.0
    left: int = 0

    def batch(self, places: Places) -> TokenIds:
        """Some of the sentences."""
        from tritonembed_engine.token_ids import TokenIds

        lengths = self.sentences.lengths[places]
        # The index of each token is the start of its sentence plus its place in the sentence.
        first = np.repeat(self.starts[places] - (np.cumsum(lengths, dtype=np.int64) - lengths), lengths)
        return TokenIds(self.sentences.ids[first + np.arange(len(first))], lengths)


class BatchRunner:
    """Runs parts one after the other; `compute` from any thread. While a batch runs, the next ones are launched."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self._max_tokens = executor.max_batch_tokens
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._pending: deque[tuple[Job, Places, Pending]] = deque()
        self._last = 0.0
        threading.Thread(target=self._run, name="bulk-batches", daemon=True).start()

    def compute(self, sentences: TokenIds, skip: int) -> tuple[Vectors, float]:
        """The pooled vectors, float32 [sentences, dimensions], and the seconds that the executor was busy with them.

        Raises the executor's errors.
        """
        lengths = sentences.lengths.astype(np.int64)
        vectors = np.empty((len(lengths), self.executor.dimensions), np.float32)
        job = Job(sentences, skip, vectors, np.cumsum(lengths) - lengths, left=len(lengths))
        if not job.left:
            return vectors, 0.0
        self._jobs.put(job)
        return job.future.result()

    def _run(self) -> None:
        while True:
            job = self._jobs.get()
            self._last = time.perf_counter()
            self._take(job)
            # The next part's first batch is launched before this part's last one is collected.
            while self._pending and self._jobs.empty():
                self._collect()

    def _take(self, job: Job) -> None:
        sizes = (self._max_tokens, self.executor.max_batch_sentences)
        for places in batches_of(job.sentences.lengths, *sizes):
            if job.future.done():
                return
            self._launch(job, places)
            while len(self._pending) >= self.executor.depth:
                self._collect()

    def _launch(self, job: Job, places: Places) -> None:
        batch = job.batch(places)
        try:
            skips: Sequence[int] | None = [job.skip] * len(places) if job.skip else None
            self._pending.append((job, places, self.executor.launch(batch, skips)))
        except Exception as error:
            self._recover(job, places, error)

    def _collect(self) -> None:
        job, places, pending = self._pending.popleft()
        try:
            vectors = pending.result()
        except Exception as error:
            self._recover(job, places, error)
            return
        now = time.perf_counter()
        job.busy += now - self._last
        self._last = now
        job.vectors[places] = vectors
        job.left -= len(places)
        if not job.left:
            job.future.set_result((job.vectors, job.busy))

    def _recover(self, job: Job, places: Places, error: Exception) -> None:
        """Compute a batch in halves if it was too large; for other errors its part fails."""
        from tritonembed_engine.errors import DeviceLost, OutOfMemory

        problem = self.executor.explain(error)
        if isinstance(problem, DeviceLost):
            # Only another process can use the device again. Ray starts one, and gives it this part.
            logger.error("the device is lost")
            os._exit(1)
        if isinstance(problem, OutOfMemory) and len(places) > 1:
            logger.warning("out of memory at %d sentences: computing them in halves", len(places))
            while self._pending:
                self._collect()
            for half in np.array_split(places, 2):
                self._launch(job, half)
                while self._pending:
                    self._collect()
        elif not job.future.done():
            job.future.set_exception(problem)
