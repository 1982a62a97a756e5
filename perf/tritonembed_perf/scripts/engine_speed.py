"""The engine alone on a GPU: tokens per second and latency of the direct executor, without Triton.

python -m tritonembed_perf.scripts.engine_speed MODEL_FOLDER [--json FILE]
"""

import statistics
import sys
import time
from typing import Any

import numpy as np

from tritonembed_perf.reports import describe_script, write_report
from tritonembed_perf.scripts.executor import LoadedExecutor, executor_parser, load_executor

SHAPES = ((655, 50), (64, 512), (225, 50), (160, 50), (64, 50), (16, 50), (1, 50), (16, 512), (1, 512))
"""Sentences x tokens of a batch; those that the model or its executor can't hold are left out."""

ROUNDS = 5
TOKENS_PER_ROUND = 600_000


def main() -> None:
    """Print a row per batch shape: throughput with two batches in flight, latency with one; medians of ROUNDS."""
    options = executor_parser(__doc__, device=False).parse_args()
    environment = describe_script("engine_speed")
    loaded = load_executor(options.model, "cuda", options.vllm)
    rows = [measure(loaded, sentences, tokens) for sentences, tokens in fitting(loaded)]
    if not rows:
        sys.exit("error: none of the shapes can be measured")
    write_report(options.json, {**environment, "rows": rows})
    loaded.executor.close()


def fitting(loaded: LoadedExecutor) -> list[tuple[int, int]]:
    """Those of SHAPES that can be run; for each of the others, print why it is left out."""
    shapes = []
    for sentences, tokens in SHAPES:
        if reason := loaded.reason_against(sentences, tokens):
            print(f"{sentences:>5} x {tokens:<4} left out: {reason}", flush=True)
        else:
            shapes.append((sentences, tokens))
    return shapes


def measure(loaded: LoadedExecutor, sentences: int, tokens: int) -> dict[str, Any]:
    """One batch shape, of random ids."""
    executor, rng = loaded.executor, np.random.default_rng(0)
    batches = [loaded.random_batch(rng, sentences, tokens) for _ in range(4)]
    repeat = max(8, min(200, TOKENS_PER_ROUND // (sentences * tokens)))
    for batch in batches:
        executor.launch(batch).result()
    rates, latencies = [], []
    for _ in range(ROUNDS):
        start, pending = time.perf_counter(), []
        for i in range(repeat):
            pending.append(executor.launch(batches[i % 4]))
            if len(pending) == 2:
                pending.pop(0).result()
        for launched in pending:
            launched.result()
        rates.append(repeat * sentences * tokens / (time.perf_counter() - start))
        latencies += [loaded.seconds(batches[i % 4]) for i in range(10)]
    rate, latency = statistics.median(rates), statistics.median(latencies)
    print(f"{sentences:>5} x {tokens:<4} {rate / 1e3:8,.0f} K tokens/s   {latency * 1e3:6.2f} ms alone", flush=True)
    return {"sentences": sentences, "tokens": tokens, "tokens_per_second": rate, "latency_ms": latency * 1e3}


if __name__ == "__main__":
    main()
