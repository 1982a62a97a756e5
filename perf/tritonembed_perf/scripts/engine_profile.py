"""Where a batch's time goes in the direct executor alone: PyTorch's profiler, by operator on a CPU, by kernel on a GPU.

python -m tritonembed_perf.scripts.engine_profile MODEL_FOLDER [--device cpu|cuda] [--shape 64x50] [--vllm JSON]
"""

import argparse
import re
import statistics
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from tritonembed_perf.reports import describe_script
from tritonembed_perf.scripts.executor import executor_parser, load_executor

if TYPE_CHECKING:
    from tritonembed_engine.token_ids import TokenIds

BATCHES = 5
ROWS = 12


def main() -> None:
    """Print the median time of a batch, then the operators that take most of it, in milliseconds per batch."""
    parser = executor_parser(__doc__, json=False)
    parser.add_argument("--shape", type=_shape, default="64x50", help="SENTENCESxTOKENS of the batch")
    options = parser.parse_args()
    sentences, tokens = options.shape
    describe_script("engine_profile")
    loaded = load_executor(options.model, options.device, options.vllm)
    executor = loaded.executor
    if reason := loaded.reason_against(sentences, tokens):
        sys.exit(f"error: --shape {sentences}x{tokens}: {reason}")
    batch = loaded.random_batch(np.random.default_rng(0), sentences, tokens)
    times = [loaded.seconds(batch) for _ in range(2 * BATCHES)][BATCHES:]
    print(f"{sentences} x {tokens}: {statistics.median(times) * 1e3:.2f} ms per batch")
    for name, calls, milliseconds in _profile(executor, batch, options.device == "cuda"):
        print(f"{milliseconds:9.2f} ms  {calls:5.1f} x  {name}")
    executor.close()


def _shape(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not SENTENCESxTOKENS")
    return int(found[1]), int(found[2])


def _profile(executor: Any, batch: "TokenIds", on_gpu: bool) -> list[tuple[str, float, float]]:
    """Name, calls and milliseconds of each, for one batch."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        for _ in range(BATCHES):
            executor.launch(batch).result()
    rows = []
    for event in profiler.key_averages():
        microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        rows.append((event.key[:90], event.count / BATCHES, microseconds / BATCHES / 1e3))
    return sorted(rows, key=lambda row: -row[2])[:ROWS]


if __name__ == "__main__":
    main()
