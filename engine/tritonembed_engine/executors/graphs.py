"""CUDA graphs of the forward pass, one a bucket, captured when a replica starts."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tritonembed_engine.executors.buckets import Bucket, buckets
from tritonembed_engine.executors.staging import Inputs
from tritonembed_engine.settings import GraphSettings

logger = logging.getLogger(__name__)
MIB = 1 << 20


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
) -> list[CapturedGraph]:
    """Capture `run` for every bucket within the budget of time and memory; gives them smallest first.

    limits: tokens and sentences of the largest batch, and the lengths that attention distinguishes. The graphs share
    one memory pool: they replay one at a time.
    """
    # What eager runs left in the allocator's cache would be given back by the first capture.
    torch.cuda.empty_cache()
    started, reserved = time.monotonic(), torch.cuda.memory_reserved()
    wanted = buckets(*limits)
    pool = torch.cuda.graph_pool_handle()
    captured: list[CapturedGraph] = []
    # Largest first, so that the pool is sized once; the kernels are compiled by the first eager runs.
    for bucket in reversed(wanted):
        used = (torch.cuda.memory_reserved() - reserved) // MIB
        if time.monotonic() - started > settings.seconds or used >= settings.memory_mib:
            break
        try:
            captured.append(_capture(run, Inputs(buffer, bucket.rows, bucket.tokens), bucket, stream, pool))
        except torch.OutOfMemoryError:
            logger.warning("no memory for the CUDA graph of %d tokens; such batches run without one", bucket.tokens)
    used = (torch.cuda.memory_reserved() - reserved) // MIB
    logger.warning(
        "captured %d of %d CUDA graphs in %.1f s, %d MiB", len(captured), len(wanted), time.monotonic() - started, used
    )
    return sorted(captured, key=lambda graph: graph.bucket)


@torch.inference_mode()
def _capture(
    run: Callable[[Inputs, int], torch.Tensor],
    inputs: Inputs,
    bucket: Bucket,
    stream: torch.cuda.Stream,
    pool: tuple[int, int],
) -> CapturedGraph:
    # As many of the longest sentences as there is room for: a batch that is allowed.
    inputs.packed.zero_()
    starts = torch.arange(bucket.rows + 1, device=inputs.starts.device) * bucket.longest
    inputs.starts.copy_(starts.clamp_max(bucket.tokens))
    inputs.lengths.copy_(inputs.starts.diff())
    with torch.cuda.stream(stream):
        run(inputs, bucket.longest)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=stream):
        pooled = run(inputs, bucket.longest)
    return CapturedGraph(bucket, graph, pooled)
