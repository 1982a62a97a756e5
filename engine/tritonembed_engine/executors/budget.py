"""The token budget of a batch, chosen by a short measurement: the smallest that keeps the GPU at full speed.

Larger batches cost latency and memory; during smaller batches the GPU waits for launches. The best size depends on the
model and the GPU.
"""

import logging
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from tritonembed_engine.executors.base import Executor
from tritonembed_engine.token_ids import TokenIds

logger = logging.getLogger(__name__)

CANDIDATES = (4096, 8192, 16384, 32768)
ENOUGH = 0.97
"""A candidate that reaches this share of the best tokens/s is enough: a larger batch is not worth its latency."""

SENTENCE_TOKENS = 128
ROUNDS = 4
LONGEST_MEASUREMENT_S = 5.0


def choose_budget(rate: Callable[[int], float], candidates: Sequence[int]) -> tuple[int, dict[int, float]]:
    """The smallest candidate that reaches ENOUGH of the best, and the tokens/s of all that were measured.

    rate: tokens/s at a budget. After a candidate that does not fit into memory, no larger candidate is tried.
    """
    measured: dict[int, float] = {}
    for candidate in sorted(candidates):
        try:
            measured[candidate] = rate(candidate)
        except torch.OutOfMemoryError:
            if not measured:
                raise
            break
    best = max(measured.values())
    return next(candidate for candidate, speed in measured.items() if speed >= ENOUGH * best), measured


def measure_budget(executor: Executor, max_length: int) -> int:
    """Run the executor at each candidate size, log the tokens/s, and return the best budget.

    max_length: the model's, in tokens. No candidate is above the executor's own budget or below one sentence.
    """
    length = min(SENTENCE_TOKENS, max_length)
    sentence = np.ones(length, dtype="<i4").tobytes()
    candidates = [c for c in CANDIDATES if max_length <= c <= executor.max_batch_tokens]
    started = time.monotonic()

    def rate(tokens: int) -> float:
        batch = TokenIds.join([sentence] * min(tokens // length, executor.max_batch_sentences))
        executor.launch(batch).result()
        times: list[float] = []
        while len(times) < ROUNDS and (not times or time.monotonic() - started < LONGEST_MEASUREMENT_S):
            before = time.perf_counter()
            # Two in a row, as the engine does: the launch of the second is hidden behind the first.
            pending = [executor.launch(batch), executor.launch(batch)]
            for one in pending:
                one.result()
            times.append(time.perf_counter() - before)
        return 2 * len(batch) * length / min(times)

    if not candidates:
        return executor.max_batch_tokens
    budget, measured = choose_budget(rate, candidates)
    table = ", ".join(f"{tokens}: {speed / 1e3:.0f} K" for tokens, speed in measured.items())
    logger.warning(
        "batch budget %d tokens, measured in %.1f s (tokens/s: %s)", budget, time.monotonic() - started, table
    )
    return budget
