"""What the engine is asked for, the request that it makes of it, and what it reports of a batch."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from tritonembed_engine.batcher import Batch, Waiting
from tritonembed_engine.vectors import Vectors


@dataclass(frozen=True)
class BatchReport:
    """What one forward pass did. capacity: its token budget. compute_seconds: from its launch to its result.

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


@dataclass(frozen=True)
class Job:
    """The arguments of `EmbeddingEngine.submit`."""

    sentences: Sequence[bytes]
    deadline: float | None = None
    normalize: bool = False
    is_abandoned: Callable[[], bool] | None = None
    """Whether its client is gone; asked on the engine's thread while the request waits."""
    skip: int = 0
    """Tokens at the start of each sentence that are not pooled."""


@dataclass(eq=False)
class Request(Waiting):
    """A request and its answer, while the pieces come in. arrived, launched: on the engine's clock."""

    normalize: bool = False
    skip: int = 0
    arrived: float = 0.0
    launched: float = 0.0
    """When the batch with its first sentence was, once that has its result."""
    future: "Future[Vectors]" = field(default_factory=Future)
    counted: int = 0
    """Sentences in batches that were reported; a batch can have two pieces of one request."""
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
        """Answer with an error, unless it was answered; what is still queued of it is skipped."""
        if not self.failed:
            self.failed = True
            if not self.future.done():
                self.future.set_exception(error)


def report(batch: "Batch[Request]", capacity: int, start: float, now: float) -> BatchReport:
    """Of a batch launched at `start` that has its result now, before it is handed out."""
    requests, waited, computed = 0, 0.0, 0.0
    for piece in batch.pieces:
        request = piece.request
        if piece.start == 0:
            request.launched = start
        request.counted += piece.stop - piece.start
        if request.counted == len(request.sentences) and not request.failed:
            requests += 1
            waited += request.launched - request.arrived
            computed += now - request.launched
    return BatchReport(len(batch.sentences), batch.tokens, capacity, now - start, requests, waited, computed)
