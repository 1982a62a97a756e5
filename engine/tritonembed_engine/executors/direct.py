"""The direct executor: a flat, unpadded batch through the forward of the model that vLLM loaded.

vLLM's kernels, attention backend and quantization stay in use. Batches bypass its per-sentence scheduler.
"""

from collections.abc import Sequence

import torch

from tritonembed_engine.errors import EmbedError
from tritonembed_engine.executors.adapters import Adapters, rows_of
from tritonembed_engine.executors.base import Pending, Ready, explain, return_free_memory
from tritonembed_engine.executors.flat_batch import begins_of, flatten
from tritonembed_engine.executors.graphs import Bucket
from tritonembed_engine.executors.pooling import Pooler
from tritonembed_engine.executors.token_heads import TokenHeads
from tritonembed_engine.executors.vllm_internals import OpenModel
from tritonembed_engine.request import Adapted, Choices
from tritonembed_engine.token_ids import ONE_TOKEN, Spans, TokenIds


class DirectExecutor:
    """Runs a model on a CPU; `launch` returns when the batch is done."""

    name = "direct"
    depth = 1
    captured: Sequence[Bucket] = ()
    uncaptured: Sequence[Bucket] = ()
    """The shapes of CUDA graphs, and of batches without a graph; a CPU has neither."""
    refused_id: int | None = None
    # OpenMP starts a team of threads for each thread that computes, and two teams would spin at the same time.
    on_any_thread = False

    def __init__(
        self,
        model: OpenModel,
        pooler: Pooler,
        max_batch_tokens: int,
        max_batch_sentences: int,
        padding_id: int | None = None,
        heads: TokenHeads | None = None,
    ) -> None:
        """padding_id: see `flatten`. heads: the model's outputs per token."""
        self._model: OpenModel | None = model
        self.dtype = str(model.dtype).removeprefix("torch.")
        self.adapters = Adapters(model.model, model.dtype, model.device)
        self._pooler = pooler
        self._padding_id = padding_id
        self.pools_spans = pooler.pools_spans
        self._heads = heads or TokenHeads.none()
        self.token_dimensions = self._heads.dimensions
        self.max_batch_tokens = max_batch_tokens
        self.max_batch_sentences = max_batch_sentences
        self.dimensions = int(self.launch(ONE_TOKEN).result().shape[1])

    @torch.inference_mode()
    def launch(
        self,
        sentences: TokenIds,
        skips: Sequence[int] | None = None,
        spans: Spans | None = None,
        choices: Choices | None = None,
        adapted: Adapted = (),
    ) -> Pending:
        """Compute the batch."""
        assert self._model is not None
        batch = flatten(sentences, self._padding_id)
        cu_seqlens = torch.from_numpy(batch.cu_seqlens)
        with self.adapters.applied(rows_of(adapted, batch.cu_seqlens)):
            hidden = forward(
                self._model,
                # A copy: models may write into their input (BERT's token types are in the ids).
                torch.from_numpy(batch.ids.copy()),
                torch.from_numpy(batch.positions),
                cu_seqlens,
                cu_seqlens,
                torch.from_numpy(batch.lengths),
                batch.longest,
                torch.from_numpy(batch.places),
            )
        if spans is not None:
            vectors = self._pooler.of_spans(hidden, spans.places(sentences.lengths))
        else:
            begins = None if skips is None else torch.from_numpy(begins_of(batch, skips))
            vectors = self._pooler(hidden, cu_seqlens, begins)
        return Ready(vectors.numpy(), self._heads(hidden, sentences, choices or {}))

    def explain(self, error: Exception) -> EmbedError:
        """See `base.explain`."""
        return explain(error)

    def rest(self) -> None:
        """Return freed memory to the system."""
        return_free_memory()

    def close(self) -> None:
        """Free the model's memory."""
        self.adapters.close()
        self._model = None


def forward(
    model: OpenModel,
    ids: torch.Tensor,
    positions: torch.Tensor,
    cu_seqlens: torch.Tensor,
    cu_seqlens_cpu: torch.Tensor,
    lengths: torch.Tensor,
    longest: int,
    places: torch.Tensor | None = None,
) -> torch.Tensor:
    """Hidden states [tokens, hidden size] of a flat batch (see FlatBatch), all tensors on the model's device.

    places: for attention on a CPU, which plans with them; None if the backend does not read them.
    """
    places = positions if places is None else places
    metadata = model.attention(cu_seqlens, cu_seqlens_cpu, lengths, places, len(ids), longest)
    with model.forward_context(metadata, len(ids)):
        hidden: torch.Tensor = model.model(input_ids=ids, positions=positions)
    return hidden
