"""The direct executor on a GPU: pinned buffers, asynchronous copies, CUDA graphs for launch-bound batches.

One stream runs the copy to the device, the forward and the pooling of batch after batch. Answers leave on a second
stream, so that the next forward does not wait for them.
"""

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from tritonembed_engine.errors import EmbedError
from tritonembed_engine.executors.base import Pending, Ready
from tritonembed_engine.executors.budget import measure_budget
from tritonembed_engine.executors.direct import forward
from tritonembed_engine.executors.faults import explain
from tritonembed_engine.executors.flat_batch import begins_of, flatten, pad
from tritonembed_engine.executors.graphs import Bucket, CapturedGraph, capture_graphs
from tritonembed_engine.executors.pooling import Pooler, segment_mean
from tritonembed_engine.executors.staging import Inputs, Stage, Stages, packed_size
from tritonembed_engine.executors.token_heads import TokenHeads
from tritonembed_engine.executors.vllm_internals import OpenModel
from tritonembed_engine.kernels import tiled_attention
from tritonembed_engine.kernels.bert import install_kernels
from tritonembed_engine.kernels.mean_pool import mean_pool
from tritonembed_engine.kernels.short_attention import LONGEST
from tritonembed_engine.model.modules import Pooling
from tritonembed_engine.model.steps import Steps
from tritonembed_engine.request import NO_TOKEN_OUTPUTS, Choices
from tritonembed_engine.settings import EngineSettings
from tritonembed_engine.token_ids import Spans, TokenIds

logger = logging.getLogger(__name__)

UNCAPTURED_SHARE = 0.85
"""Share of the budget: too few tokens to fill the graph of the whole budget, too many for the next smaller graph."""


class CudaDirectExecutor:
    """Runs a model on a GPU; `launch` returns while the GPU works."""

    name = "direct"
    depth = 2
    refused_id: int | None = None
    on_any_thread = True

    def __init__(
        self,
        model: OpenModel,
        settings: EngineSettings,
        dimensions: int,
        max_length: int,
        max_batch_tokens: int,
        max_batch_sentences: int,
        poolings: Sequence[Pooling] = (Pooling.MEAN,),
        steps: Steps | None = None,
        padding_id: int | None = None,
        heads: TokenHeads | None = None,
    ) -> None:
        """poolings, steps: the model's pooling and what follows it. padding_id: see `flatten`. heads: the model's
        outputs per token."""
        self.dimensions = dimensions
        self.max_batch_tokens = max_batch_tokens
        self.max_batch_sentences = max_batch_sentences
        self._model: OpenModel | None = model
        self.dtype = str(model.dtype).removeprefix("torch.")
        mean = mean_pool if settings.kernels.mean_pool else segment_mean
        self._pooler = Pooler(poolings, steps or Steps(()), mean)
        self.pools_spans = self._pooler.pools_spans
        self._heads = heads or TokenHeads.none()
        self.token_dimensions = self._heads.dimensions
        self._padding_id = padding_id
        self._compute = torch.cuda.Stream()
        self._copy = torch.cuda.Stream()
        lengths = sorted({min(length, max_length) for length in (64, LONGEST, tiled_attention.LONGEST, max_length)})
        rows = max_batch_sentences + max_batch_tokens // lengths[0] + 1
        size = packed_size(rows, max_batch_tokens)
        self._buffer = torch.zeros(size, dtype=torch.int32, device=model.device)
        self._stages = Stages(Stage(rows, max_batch_tokens, dimensions) for _ in range(self.depth))
        self._longest = max_length
        self.graphs: list[CapturedGraph] = []
        with model.config():
            self._kernels = install_kernels(model.model, model.dtype, settings.kernels)
        try:
            # Ranks would measure different times.
            if settings.max_batch_tokens is None and model.ranks == 1:
                self.max_batch_tokens = measure_budget(self, max_length)
            if settings.graphs.enabled:
                limits = (self.max_batch_tokens, max_batch_sentences, lengths)
                with model.capturing():
                    self.graphs = capture_graphs(
                        self._run, self._buffer, self._compute, limits, settings.graphs, model.agree
                    )
        except BaseException:
            self.close()
            raise

    @property
    def captured(self) -> list[Bucket]:
        """The shapes of the CUDA graphs."""
        return [graph.bucket for graph in self.graphs]

    @property
    def uncaptured(self) -> list[Bucket]:
        """The shape of a large batch that no graph serves, if there is such a batch."""
        tokens = max(1, int(self.max_batch_tokens * UNCAPTURED_SHARE))
        return [Bucket(tokens, self._longest, self.max_batch_sentences)]

    @torch.inference_mode()
    def launch(
        self,
        sentences: TokenIds,
        skips: Sequence[int] | None = None,
        spans: Spans | None = None,
        choices: Choices | None = None,
    ) -> Pending:
        """Start the forward pass of a batch; with `spans` or `choices`, wait for it."""
        stage = self._stages.take()
        try:
            if choices:
                ready = self._with_tokens(sentences, stage, skips, spans, choices)
                self._stages.give_back(stage)
                return ready
            if spans is None:
                done, pooled = self._launch(sentences, stage, skips)
                return _Answer(stage, len(sentences), done, self._stages, pooled)
            vectors = self._pool_spans(sentences, stage, spans)
        except BaseException:
            self._stages.give_back(stage)
            raise
        self._stages.give_back(stage)
        return Ready(vectors)

    def _with_tokens(
        self, sentences: TokenIds, stage: Stage, skips: Sequence[int] | None, spans: Spans | None, choices: Choices
    ) -> Pending:
        """The vectors and the outputs per token, whose size no stage has room for, and which no graph computes."""
        batch = flatten(sentences, self._padding_id)
        packed = stage.fill(batch, len(sentences))
        begins = None if skips is None else torch.from_numpy(begins_of(batch, skips)).to(self._buffer.device)
        with torch.cuda.stream(self._compute):
            self._buffer[: len(packed)].copy_(packed, non_blocking=True)
            inputs = Inputs(self._buffer, len(sentences), batch.tokens)
            hidden = self._forward(inputs, batch.longest)
            if spans is not None:
                pooled = self._pooler.of_spans(hidden, spans.places(sentences.lengths))
            else:
                pooled = self._pooler(hidden, inputs.cu_seqlens, begins)
            token_outputs = self._heads(hidden, sentences, choices)
            return Ready(pooled.cpu().numpy(), token_outputs)

    def _pool_spans(self, sentences: TokenIds, stage: Stage, spans: Spans) -> npt.NDArray[np.float32]:
        """float32 [spans, dimensions]. There can be more spans than a stage has room for, and no graph pools them."""
        batch = flatten(sentences, self._padding_id)
        packed = stage.fill(batch, len(sentences))
        with torch.cuda.stream(self._compute):
            self._buffer[: len(packed)].copy_(packed, non_blocking=True)
            hidden = self._forward(Inputs(self._buffer, len(sentences), batch.tokens), batch.longest)
            # The copy to the host waits for the stream.
            vectors: npt.NDArray[np.float32] = (
                self._pooler.of_spans(hidden, spans.places(sentences.lengths)).cpu().numpy()
            )
        return vectors

    def _launch(
        self, sentences: TokenIds, stage: Stage, skips: Sequence[int] | None
    ) -> tuple[torch.cuda.Event, torch.Tensor]:
        """The event after which the stage has the answer, and the tensor from which it is copied."""
        batch = flatten(sentences, self._padding_id)
        count, longest = len(sentences), batch.longest
        done = stage.done(count)
        # A graph pools whole sentences.
        begins = None if skips is None else torch.from_numpy(begins_of(batch, skips)).to(self._buffer.device)
        graphs = self.graphs if begins is None else ()
        graph = next((g for g in graphs if g.bucket.holds(batch.tokens, count, longest)), None)
        if graph:
            batch = pad(batch, graph.bucket.tokens, graph.bucket.longest)
        packed = stage.fill(batch, graph.bucket.rows if graph else count)
        with torch.cuda.stream(self._compute):
            self._buffer[: len(packed)].copy_(packed, non_blocking=True)
            if graph:
                # On the same stream: the answer is small, and the next replay has to wait for this copy.
                pooled = graph.replay()[:count]
                stage.answer[:count].copy_(pooled, non_blocking=True)
                done.record()
                return done, pooled
            pooled = self._run(Inputs(self._buffer, count, batch.tokens), longest, begins)
        self._copy.wait_stream(self._compute)
        with torch.cuda.stream(self._copy):
            stage.answer[:count].copy_(pooled, non_blocking=True)
            done.record()
        return done, pooled

    def explain(self, error: Exception) -> EmbedError:
        """See `faults`."""
        return explain(error)

    def rest(self) -> None:
        """Nothing to give back."""

    def close(self) -> None:
        """Free the model's memory, and leave the model as vLLM made it."""
        torch.cuda.synchronize()
        self._kernels.remove()
        self.graphs.clear()
        self._model = None
        torch.cuda.empty_cache()

    def _run(self, inputs: Inputs, longest: int, begins: torch.Tensor | None = None) -> torch.Tensor:
        """Pooled vectors of a batch on the device. CUDA graphs capture it: nothing in it may wait for the GPU."""
        return self._pooler(self._forward(inputs, longest), inputs.cu_seqlens, begins)

    def _forward(self, inputs: Inputs, longest: int) -> torch.Tensor:
        """Hidden states [tokens, hidden size]."""
        assert self._model is not None
        self._kernels.cu_seqlens, self._kernels.longest = inputs.cu_seqlens, longest
        # The metadata's host copy is only read by backends that plan on the host; no encoder attention does.
        cu_seqlens_cpu = torch.zeros(len(inputs.cu_seqlens), dtype=torch.int32)
        positions = inputs.positions.long()
        return forward(self._model, inputs.ids, positions, inputs.cu_seqlens, cu_seqlens_cpu, inputs.lengths, longest)


class _Answer:
    def __init__(self, stage: Stage, count: int, done: torch.cuda.Event, stages: Stages, source: torch.Tensor) -> None:
        self._stage = stage
        self._count = count
        self._done = done
        self._stages = stages
        # Kept until the copy is done: else the next batch could take its memory. `record_stream` would prevent that
        # too, but it calls CUDA when the tensor is freed, and an error there ends the process.
        self._source = source
        self.token_outputs = NO_TOKEN_OUTPUTS

    def result(self) -> npt.NDArray[np.float32]:
        """Wait for the GPU, then copy, because the stage is used again. To be called once."""
        try:
            self._done.synchronize()
            answer: npt.NDArray[np.float32] = self._stage.answer[: self._count].numpy().copy()
            return answer
        finally:
            self._stages.give_back(self._stage)
