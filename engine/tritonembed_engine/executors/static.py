"""The static executor: the mean of a table's rows, always on the CPU. No transformer is loaded."""

from collections.abc import Sequence

import numpy as np
import torch

from tritonembed_engine.errors import EmbedError
from tritonembed_engine.executors.base import Pending, Ready, explain, return_free_memory
from tritonembed_engine.model.steps import Steps
from tritonembed_engine.request import Adapted, Choices
from tritonembed_engine.token_ids import Spans, TokenIds

SUM = 0
"""torch.embedding_bag's number of this mode."""

TOKENS_PER_BATCH = 65_536
"""A batch of 1,024 sentences of 64 tokens takes a few milliseconds of one core."""


class StaticExecutor:
    """Reads a table of static embeddings; `launch` returns when the batch is done."""

    name = "static"
    dtype = "float32"
    depth = 1
    refused_id: int | None = None
    # A batch takes less time than a change of threads.
    on_any_thread = True
    # The vector of a part of a text is that of the part alone.
    pools_spans = False
    token_dimensions: int | None = None

    def __init__(self, table: torch.Tensor, steps: Steps, max_batch_tokens: int, max_batch_sentences: int) -> None:
        """table: float32 [tokens, width]. The id behind its last row stands for a text without tokens: zeros."""
        # Most batches take microseconds. On a busy core, waiting for a second thread costs more than the thread saves.
        torch.set_num_threads(1)
        self._table = torch.cat([table, table.new_zeros((1, table.shape[1]))])
        self._steps = steps
        self.max_batch_tokens = max_batch_tokens
        self.max_batch_sentences = max_batch_sentences
        with torch.inference_mode():
            self.dimensions = int(steps(self._table[-1:]).shape[1])

    @torch.inference_mode()
    def launch(
        self,
        sentences: TokenIds,
        skips: Sequence[int] | None = None,
        spans: Spans | None = None,
        choices: Choices | None = None,
        adapted: Adapted = (),  # noqa: ARG002 - a table has no layers
    ) -> Pending:
        """Compute the batch. `skips` and `spans` are None: this executor leaves out no prompts and pools no spans."""
        assert skips is None
        assert spans is None
        assert not choices
        starts = np.cumsum(sentences.lengths, dtype=np.int32) - sentences.lengths
        # A copy: torch has no read-only tensors.
        ids = torch.from_numpy(sentences.ids.copy())
        # Its mean takes longer than its sum and a division.
        sums = torch.embedding_bag(self._table, ids, torch.from_numpy(starts), mode=SUM)[0]
        means = sums.div_(torch.from_numpy(sentences.lengths[:, None].astype(np.float32)))
        return Ready(self._steps(means).numpy())

    def explain(self, error: Exception) -> EmbedError:
        """See `base.explain`."""
        return explain(error)

    def rest(self) -> None:
        """Return freed memory to the system."""
        return_free_memory()

    def close(self) -> None:
        """Free the table."""
        self._table = self._table[:0]
