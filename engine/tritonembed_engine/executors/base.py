"""The interface between the engine and an executor, and what several executors share."""

import ctypes
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tritonembed_engine.errors import DeviceLost, EmbedError, ExecutionFailed, OutOfMemory
from tritonembed_engine.model.modules import Pooling
from tritonembed_engine.request import NO_TOKEN_OUTPUTS, Adapted, Choices, TokenOutputs
from tritonembed_engine.token_ids import Spans, TokenIds


class Pending(Protocol):
    """A batch that was launched."""

    def result(self) -> npt.NDArray[np.float32]:
        """Wait for the pooled vectors: float32 [sentences or spans, dimensions], not normalised."""

    @property
    def token_outputs(self) -> TokenOutputs:
        """The outputs per token that the launch's `choices` ask for, once `result` has returned."""


class Executor(Protocol):
    """Runs batches of sentences; called from one thread at a time."""

    name: str
    dtype: str
    """The type in which the model computes, by torch's name."""

    dimensions: int
    """Length of the model's vectors."""

    max_batch_tokens: int
    max_batch_sentences: int
    depth: int
    """The most batches launched but not collected; 1 if `launch` returns when the batch is done."""

    refused_id: int | None
    """A token id whose sentences would get wrong vectors."""

    on_any_thread: bool
    """Whether any thread may call it. If not, only the engine's own thread may: another would cost more than it
    saves."""

    pools_spans: bool
    """Whether it can pool parts of a sentence."""

    token_dimensions: int | None
    """Length of a token's vector; None if the executor has no vectors of tokens."""

    def launch(
        self,
        sentences: TokenIds,
        skips: Sequence[int] | None = None,
        spans: Spans | None = None,
        choices: Choices | None = None,
        adapted: Adapted = (),
    ) -> Pending:
        """Start a batch; on a GPU this returns while it runs.

        skips: the number of tokens at the start of each sentence that are not pooled (a prompt's); None: all are
        pooled. spans: parts of sentences, which get the vectors instead of the sentences; only if `pools_spans`, and
        without `skips`. choices: the outputs per token to compute as well, if the model has them. adapted: the
        sentences to which adapters apply.
        """

    def explain(self, error: Exception) -> EmbedError:
        """Turn an exception of `launch` or `result` into OutOfMemory, DeviceLost or ExecutionFailed."""

    def rest(self) -> None:
        """Return memory that is only cached. Called after a while without a batch."""

    def close(self) -> None:
        """Free the model's memory."""


class Ready:
    """A batch that is finished when `launch` returns."""

    def __init__(self, vectors: npt.NDArray[np.float32], token_outputs: TokenOutputs = NO_TOKEN_OUTPUTS) -> None:
        self._vectors = vectors
        self.token_outputs = token_outputs

    def result(self) -> npt.NDArray[np.float32]:
        """The vectors; does not wait."""
        return self._vectors


def reason_against_spans(poolings: Sequence[Pooling], executor: Executor) -> str | None:
    """Why parts of a text can't be pooled; None if they can. poolings: of the model."""
    if list(poolings) != [Pooling.MEAN]:
        return "the model does not pool by the mean, so parts of a text have no vectors"
    return None if executor.pools_spans else f"the {executor.name} executor can't pool parts of a text"


def return_free_memory() -> None:
    """Return malloc's free memory to the system: after batches of many sizes, it can be 40 % of a process."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc's
        trim(0)


def explain(error: Exception) -> EmbedError:
    """The engine's own exception for an exception of a forward pass in torch.

    Its message has only the exception's type: messages of torch or vLLM can contain paths.
    """
    # Imported here: not every executor needs torch.
    import torch

    if isinstance(error, EmbedError):
        return error
    kind = type(error).__name__
    out_of_memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
    if torch.cuda.is_initialized():
        try:
            # An error poisons the context if even waiting for the device fails (CUDA's "sticky" errors).
            torch.cuda.synchronize()
            if out_of_memory:
                # Cached blocks of larger batches leave no room for smaller ones.
                torch.cuda.empty_cache()
        except RuntimeError:
            return DeviceLost(f"the GPU is lost to this process ({kind})")
    if out_of_memory:
        return OutOfMemory("the device has no room for a batch")
    return ExecutionFailed(f"a batch failed: {kind}")
