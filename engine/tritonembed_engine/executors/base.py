"""What the engine asks of an executor."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tritonembed_engine.errors import EmbedError


class Pending(Protocol):
    """A batch that was launched."""

    def result(self) -> npt.NDArray[np.float32]:
        """Wait for the pooled vectors: float32 [sentences, dimensions], not normalised."""


class Executor(Protocol):
    """Runs batches of sentences, each its ids as little-endian int32; called from one thread at a time."""

    name: str
    dimensions: int
    """Of the model's vectors."""

    max_batch_tokens: int
    max_batch_sentences: int
    depth: int
    """Batches launched and not collected, at most; 1 where `launch` returns once the batch is done."""

    refused_id: int | None
    """A token id whose sentences it can't embed rightly."""

    on_any_thread: bool
    """False: always on the engine's own thread, because another one would cost more than it saves."""

    def launch(self, sentences: Sequence[bytes], skips: Sequence[int] | None = None) -> Pending:
        """Start a batch; on a GPU this returns while it runs.

        skips: tokens at the start of each sentence that are not pooled (a prompt's); None: none of any.
        """

    def explain(self, error: Exception) -> EmbedError:
        """What an exception of `launch` or `result` was: OutOfMemory, DeviceLost, or ExecutionFailed."""

    def rest(self) -> None:
        """No batch has come for a while: give back memory that is only cached."""

    def close(self) -> None:
        """Free the model's memory."""


class Ready:
    """A batch that is finished when `launch` returns."""

    def __init__(self, vectors: npt.NDArray[np.float32]) -> None:
        self._vectors = vectors

    def result(self) -> npt.NDArray[np.float32]:
        """The vectors, at once."""
        return self._vectors
