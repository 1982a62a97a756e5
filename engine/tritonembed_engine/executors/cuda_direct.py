"""The direct executor on a GPU: pinned buffers, asynchronous copies, CUDA graphs for launch-bound batches.

One stream runs the copy to the device, the forward and the pooling of batch after batch. A second stream copies the
answers to the host, so that the next forward does not wait for them.
"""

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from tritonembed_engine.errors import EmbedError
from tritonembed_engine.executors.adapters import Adapters, rows_of
from tritonembed_engine.executors.base import Pending, Ready, explain
from tritonembed_engine.executors.budget import measure_budget
from tritonembed_engine.executors.direct import forward
from tritonembed_engine.executors.flat_batch import Inputs, Stage, Stages, begins_of, flatten, packed_size, pad
from tritonembed_engine.executors.graphs import Bucket, CapturedGraph, capture_graphs
from tritonembed_engine.executors.pooling import Pooler, segment_mean
from tritonembed_engine.executors.token_heads import Computed, TokenHeads
from tritonembed_engine.executors.vllm_internals import OpenModel
from tritonembed_engine.kernels import tiled_attention
from tritonembed_engine.kernels.install import install_kernels
from tritonembed_engine.kernels.short_attention import LONGEST
from tritonembed_engine.kernels.token_pools import mean_pool
from tritonembed_engine.model.modules import Pooling
from tritonembed_engine.model.steps import Steps
from tritonembed_engine.request import NO_TOKEN_OUTPUTS, Adapted, Choices
from tritonembed_engine.settings import EngineSettings
from tritonembed_engine.token_ids import Spans, TokenIds

logger = logging.getLogger(__name__)

UNCAPTURED_SHARE = 0.85
"""Share of the budget that is too few tokens to fill the graph of the whole budget, and too many for the next smaller
graph."""


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
        self.adapters = Adapters(model.model, model.dtype, model.device)
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
        if self._heads.names:
            # The heads read a copy of the hidden states, because a graph uses its own memory again.
            states = max_batch_tokens, self._heads.hidden_size
            self._states = torch.zeros(states, dtype=model.dtype, device=model.device)
        self._stages = Stages(Stage(rows, max_batch_tokens, dimensions) for _ in range(self.depth))
        self._longest = max_length
        self.graphs: list[CapturedGraph] = []
        with model.config():
            self._kernels = install_kernels(model.model, model.dtype, settings.kernels, causal=model.causal)
        try:
            # Each rank would measure other times, and choose another budget.
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
        adapted: Adapted = (),
    ) -> Pending:
        """Start the forward pass of a batch; with `spans`, wait for it."""
        rows = rows_of(adapted, np.append(0, np.cumsum(sentences.lengths))) if adapted else []
        stage = self._stages.take()
        try:
            with self.adapters.applied(rows, self._kernels.reading):
                if spans is None:
                    done, pooled, computed = self._launch(sentences, stage, skips, choices or {}, is_adapted=bool(rows))
                    return _Answer(stage, len(sentences), done, self._stages, pooled, computed, self._copy)
                ready = self._pool_spans(sentences, stage, spans, choices or {})
        except BaseException:
            self._stages.give_back(stage)
            raise
        self._stages.give_back(stage)
        return ready

    def _pool_spans(self, sentences: TokenIds, stage: Stage, spans: Spans, choices: Choices) -> Ready:
        """Vectors [spans, dimensions]. No stage and no graph: a stage may have too little room, and no graph pools
        spans."""
        batch = flatten(sentences, self._padding_id)
        packed = stage.fill(batch, len(sentences))
        with torch.cuda.stream(self._compute):
            self._buffer[: len(packed)].copy_(packed, non_blocking=True)
            hidden = self._forward(Inputs(self._buffer, len(sentences), batch.tokens), batch.longest)
            pooled = self._pooler.of_spans(hidden, spans.places(sentences.lengths))
            # The copy to the host waits for the stream.
            return Ready(pooled.cpu().numpy(), self._heads(hidden, sentences, choices))

    def _launch(
        self,
        sentences: TokenIds,
        stage: Stage,
        skips: Sequence[int] | None,
        choices: Choices,
        *,
        is_adapted: bool,
    ) -> tuple[torch.cuda.Event, torch.Tensor, dict[str, Computed]]:
        """The event after which the stage has the answer, the tensor that it is copied from, and the outputs per token,
        which are copied by then, too."""
        batch = flatten(sentences, self._padding_id)
        count, longest, tokens = len(sentences), batch.longest, batch.tokens
        done = stage.done(count)
        # A graph pools whole sentences of the base model.
        begins = None if skips is None else torch.from_numpy(begins_of(batch, skips)).to(self._buffer.device)
        graphs = self.graphs if begins is None and not is_adapted else ()
        graph = next((g for g in graphs if g.bucket.holds(batch.tokens, count, longest)), None)
        if graph:
            batch = pad(batch, graph.bucket.tokens, graph.bucket.longest)
        packed = stage.fill(batch, graph.bucket.rows if graph else count)
        with torch.cuda.stream(self._compute):
            self._buffer[: len(packed)].copy_(packed, non_blocking=True)
            pooled = (
                graph.replay()[:count]
                if graph
                else self._run(Inputs(self._buffer, count, tokens), longest, begins, every_token=is_adapted)
            )
            computed = self._heads.start(self._states[:tokens], sentences, choices) if choices else {}
            if graph and not computed:
                # On the same stream: the answer is small, and the next replay has to wait for this copy.
                stage.answer[:count].copy_(pooled, non_blocking=True)
                done.record()
                return done, pooled, computed
            if graph:
                pooled = pooled.clone()
        self._copy.wait_stream(self._compute)
        with torch.cuda.stream(self._copy):
            stage.answer[:count].copy_(pooled, non_blocking=True)
            for output in computed.values():
                output.copy()
            done.record()
        return done, pooled, computed

    def explain(self, error: Exception) -> EmbedError:
        """See `base.explain`."""
        return explain(error)

    def rest(self) -> None:
        """Nothing is cached."""

    def close(self) -> None:
        """Free the model's memory, and leave the model as vLLM made it."""
        torch.cuda.synchronize()
        self._kernels.remove()
        self.graphs.clear()
        self.adapters.close()
        self._model = None
        torch.cuda.empty_cache()

    def _run(
        self, inputs: Inputs, longest: int, begins: torch.Tensor | None = None, *, every_token: bool = False
    ) -> torch.Tensor:
        """Pooled vectors of a batch on the device. CUDA graphs capture it: nothing in it may wait for the GPU.

        every_token: whether the last layer computes every token, because an adapter's rows are tokens of the batch.
        """
        only_rows = self._kernels.computes_rows and self._pooler.reads_rows and not self._heads.names
        if only_rows and begins is None and not every_token:
            rows = self._pooler.rows(inputs.cu_seqlens, len(inputs.ids))
            return self._pooler.finish(self._forward(inputs, longest, rows))
        hidden = self._forward(inputs, longest)
        if self._heads.names:
            self._states[: len(hidden)].copy_(hidden)
        return self._pooler(hidden, inputs.cu_seqlens, begins)

    def _forward(self, inputs: Inputs, longest: int, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Hidden states [tokens, hidden size], or those of `rows` alone."""
        assert self._model is not None
        self._kernels.cu_seqlens, self._kernels.longest, self._kernels.rows = inputs.cu_seqlens, longest, rows
        # Only backends that plan on the host read the metadata's host copy; no encoder attention does.
        cu_seqlens_cpu = torch.zeros(len(inputs.cu_seqlens), dtype=torch.int32)
        positions = inputs.positions.long()
        return forward(self._model, inputs.ids, positions, inputs.cu_seqlens, cu_seqlens_cpu, inputs.lengths, longest)


class _Answer:
    def __init__(
        self,
        stage: Stage,
        count: int,
        done: torch.cuda.Event,
        stages: Stages,
        source: torch.Tensor,
        computed: dict[str, Computed],
        copies: torch.cuda.Stream,
    ) -> None:
        self._stage = stage
        self._count = count
        self._done = done
        self._stages = stages
        # The tensor is kept until the copy is done, so that the next batch can't take its memory. `record_stream` would
        # prevent that too, but it calls CUDA when the tensor is freed, and an error there ends the process.
        self._source = source
        self._computed = computed
        self._copies = copies
        self.token_outputs = NO_TOKEN_OUTPUTS

    @torch.inference_mode()
    def result(self) -> npt.NDArray[np.float32]:
        """Wait for the GPU, then copy, because the stage is used again. To be called once."""
        try:
            self._done.synchronize()
            answer: npt.NDArray[np.float32] = self._stage.answer[: self._count].numpy().copy()
            if self._computed:
                # Not on the stream of the next batch.
                with torch.cuda.stream(self._copies):
                    self.token_outputs = {name: output.rows() for name, output in self._computed.items()}
            return answer
        finally:
            self._stages.give_back(self._stage)
