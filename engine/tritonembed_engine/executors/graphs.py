"""CUDA graphs of the forward pass: their shapes (buckets), and their capture at the start."""

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from tritonembed_engine.executors.flat_batch import Inputs
from tritonembed_engine.settings import GraphSettings
from tritonembed_engine.stub.process import announce

logger = logging.getLogger(__name__)
MIB = 1 << 20
_ANNOUNCED_EVERY_S = 2.0

LAUNCH_BOUND_TOKENS = 12288
"""Tokens below which an eager forward takes the same time whatever its size: the CPU launches more slowly than the GPU
works."""

TOKENS = (
    *(64, 96, 128, 192, 256, 320, 384, 448, 512, 576, 640, 704, 768, 832, 896, 960, 1024),
    *(1280, 1536, 1792, 2048, 2560, 3072, 3584, 4096, 5120, 6144, 7168, 8192, 9216, 10240, 11264, 12288),
    *(16384, 32768, 65536),
)
TOKENS_PER_SENTENCE = 16
"""A bucket has room for a sentence per this number of tokens."""

SMALLEST_SENTENCES = 8
LARGEST_WASTE = 1.1
"""Above LAUNCH_BOUND_TOKENS padding costs time: a graph serves only batches that fill it to 1 / 1.1."""


@dataclass(frozen=True, order=True)
class Bucket:
    """A graph's shape: room for tokens and sentences, and the longest sentence that its attention is launched for."""

    tokens: int
    longest: int
    sentences: int

    @property
    def rows(self) -> int:
        """Room for sentences and for those of padding, which have `longest` tokens each."""
        return self.sentences + -(-self.tokens // self.longest)

    def holds(self, tokens: int, sentences: int, longest: int) -> bool:
        """Whether a batch fits, and fills it well enough to be worth the padding."""
        fits = tokens <= self.tokens and sentences <= self.sentences and longest <= self.longest
        return fits and (self.tokens <= LAUNCH_BOUND_TOKENS or tokens * LARGEST_WASTE >= self.tokens)


def buckets(max_tokens: int, max_sentences: int, longest: Iterable[int]) -> list[Bucket]:
    """All shapes up to a batch's budget, smallest first. longest: the lengths that attention distinguishes."""
    longest = sorted(longest)
    return sorted(
        Bucket(tokens, length, max(SMALLEST_SENTENCES, min(tokens // TOKENS_PER_SENTENCE, max_sentences)))
        for tokens in TOKENS
        for shorter, length in zip([0, *longest], longest, strict=False)
        # No sentence is longer than its batch, so of the lengths above that the smallest is enough.
        if shorter < tokens
        if tokens <= max(max_tokens, TOKENS[0])
    )


@dataclass(frozen=True)
class CapturedGraph:
    """A forward pass over fixed memory; the inputs are written into the shared buffer before each replay."""

    bucket: Bucket
    graph: torch.cuda.CUDAGraph
    pooled: torch.Tensor

    def replay(self) -> torch.Tensor:
        """Run it on the current stream: float32 [bucket's rows, dimensions], overwritten by the next replay."""
        self.graph.replay()
        return self.pooled


def capture_graphs(
    run: Callable[[Inputs, int], torch.Tensor],
    buffer: torch.Tensor,
    stream: torch.cuda.Stream,
    limits: tuple[int, int, list[int]],
    settings: GraphSettings,
    agree: Callable[[bool], bool] = bool,
) -> list[CapturedGraph]:
    """Capture `run` for every bucket within the limits of time and memory. Returns the graphs, smallest first.

    limits: tokens and sentences of the largest batch, and the lengths that attention distinguishes. agree: from this
    process's wish to stop to the decision of all processes of the replica. The graphs share one memory pool: only one
    replays at a time.
    """
    # Else the first capture would free what eager runs left in the allocator's cache, and its memory would be measured
    # wrong.
    torch.cuda.empty_cache()
    started, reserved = time.monotonic(), torch.cuda.memory_reserved()
    wanted = buckets(*limits)
    pool = torch.cuda.graph_pool_handle()
    captured: list[CapturedGraph] = []
    announced = float("-inf")
    # Largest first, so that the pool is sized once. The eager runs before compile the kernels.
    for bucket in reversed(wanted):
        used = (torch.cuda.memory_reserved() - reserved) // MIB
        if agree(time.monotonic() - started > settings.seconds or used >= settings.memory_mib):
            break
        if time.monotonic() - announced >= _ANNOUNCED_EVERY_S:
            announced = time.monotonic()
            announce(f"capturing CUDA graphs ({len(captured)} of {len(wanted)})")
        inputs = Inputs(buffer, bucket.rows, bucket.tokens)
        try:
            if agree(2 * _run_once(run, inputs, bucket, stream) // MIB > settings.memory_mib):
                # Graphs for the largest batches of a large model gain nothing, and leave no room for others.
                torch.cuda.empty_cache()
                continue
            captured.append(_capture(run, inputs, bucket, stream, pool))
        except torch.OutOfMemoryError:
            logger.warning(
                "no memory for the CUDA graph of %d tokens: batches of this size run without a graph", bucket.tokens
            )
    used = (torch.cuda.memory_reserved() - reserved) // MIB
    logger.warning(
        "captured %d of %d CUDA graphs in %.1f s, %d MiB", len(captured), len(wanted), time.monotonic() - started, used
    )
    return sorted(captured, key=lambda graph: graph.bucket)


@torch.inference_mode()
def _run_once(
    run: Callable[[Inputs, int], torch.Tensor], inputs: Inputs, bucket: Bucket, stream: torch.cuda.Stream
) -> int:
    """Run `run` without a graph, which compiles kernels. Returns the bytes that it takes."""
    # An allowed batch: as many of the longest sentences as there is room for.
    inputs.packed.zero_()
    cu_seqlens = torch.arange(bucket.rows + 1, device=inputs.cu_seqlens.device) * bucket.longest
    inputs.cu_seqlens.copy_(cu_seqlens.clamp_max(bucket.tokens))
    inputs.lengths.copy_(inputs.cu_seqlens.diff())
    before = int(torch.cuda.memory_allocated())
    torch.cuda.reset_peak_memory_stats()
    with torch.cuda.stream(stream):
        run(inputs, bucket.longest)
    stream.synchronize()
    return int(torch.cuda.max_memory_allocated()) - before


@torch.inference_mode()
def _capture(
    run: Callable[[Inputs, int], torch.Tensor],
    inputs: Inputs,
    bucket: Bucket,
    stream: torch.cuda.Stream,
    pool: tuple[int, int],
) -> CapturedGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=stream):
        pooled = run(inputs, bucket.longest)
    return CapturedGraph(bucket, graph, pooled)
