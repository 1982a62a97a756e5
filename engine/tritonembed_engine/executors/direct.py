"""The direct executor: a flat, unpadded batch through the forward of the model that vLLM loaded.

vLLM keeps its kernels, attention backend and quantization; its per-sentence scheduling is not on the path.
"""

import ctypes
from collections.abc import Sequence

import numpy as np
import torch

from tritonembed_engine.errors import EmbedError
from tritonembed_engine.executors.base import Pending, Ready
from tritonembed_engine.executors.faults import explain
from tritonembed_engine.executors.flat_batch import begins_of, flatten
from tritonembed_engine.executors.pooling import Pooler
from tritonembed_engine.executors.vllm_internals import OpenModel


class DirectExecutor:
    """Runs an encoder-only model on a CPU; `launch` returns when the batch is done."""

    name = "direct"
    depth = 1
    refused_id: int | None = None
    # OpenMP starts a team of threads for each one that computes, and teams that took turns would spin side by side.
    on_any_thread = False

    def __init__(
        self,
        model: OpenModel,
        pooler: Pooler,
        max_batch_tokens: int,
        max_batch_sentences: int,
        padding_id: int | None = None,
    ) -> None:
        """padding_id: see `flatten`."""
        self._model: OpenModel | None = model
        self._pooler = pooler
        self._padding_id = padding_id
        self.max_batch_tokens = max_batch_tokens
        self.max_batch_sentences = max_batch_sentences
        self.dimensions = int(self.launch([np.ones(1, dtype="<i4").tobytes()]).result().shape[1])

    @torch.inference_mode()
    def launch(self, sentences: Sequence[bytes], skips: Sequence[int] | None = None) -> Pending:
        """Compute the batch."""
        assert self._model is not None
        batch = flatten(sentences, self._padding_id)
        starts = torch.from_numpy(batch.starts)
        hidden = forward(
            self._model,
            # A copy: models may write into their input (BERT's token types travel in it).
            torch.from_numpy(batch.ids.copy()),
            torch.from_numpy(batch.positions),
            starts,
            starts,
            torch.from_numpy(batch.lengths),
            batch.longest,
            torch.from_numpy(batch.places),
        )
        begins = None if skips is None else torch.from_numpy(begins_of(batch, skips))
        return Ready(self._pooler(hidden, starts, begins).numpy())

    def explain(self, error: Exception) -> EmbedError:
        """See `faults`."""
        return explain(error)

    def rest(self) -> None:
        """Hand freed memory back to the system: batches of ever new sizes leave up to 40 % of a process in holes."""
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc's
            trim(0)

    def close(self) -> None:
        """Free the model's memory."""
        self._model = None


def forward(
    model: OpenModel,
    ids: torch.Tensor,
    positions: torch.Tensor,
    starts: torch.Tensor,
    starts_cpu: torch.Tensor,
    lengths: torch.Tensor,
    longest: int,
    places: torch.Tensor | None = None,
) -> torch.Tensor:
    """Hidden states [tokens, hidden size] of a flat batch (see FlatBatch), all tensors on the model's device.

    places: for attention on a CPU, which plans by them; None where its backend does not look.
    """
    places = positions if places is None else places
    metadata = model.attention(starts, starts_cpu, lengths, places, len(ids), longest)
    with model.forward_context(metadata, len(ids)):
        hidden: torch.Tensor = model.model(input_ids=ids, positions=positions)
    return hidden
