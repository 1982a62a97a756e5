"""Both executors with one model on a CPU, in turn: sentences per second of each, and the ratio.

python -m tritonembed_perf.scripts.both_executors MODEL_FOLDER [--json FILE]
"""

import statistics
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from tritonembed_perf.reports import describe_script, write_report
from tritonembed_perf.scripts.executor import LoadedExecutor, executor_parser, load_executor

if TYPE_CHECKING:
    from tritonembed_engine.token_ids import TokenIds

SHAPES = ((1, 10), (1, 50), (1, 300), (16, 50), (64, 50), (16, 300))
"""Sentences x tokens of a batch."""

ROUNDS = 7
SECONDS_PER_ROUND = 0.5


def main() -> None:
    """Print a row per batch shape; medians of ROUNDS, in which the executors take turns."""
    options = executor_parser(__doc__, device=False).parse_args()
    environment = describe_script("both_executors")
    both = [load_executor(options.model, "cpu", options.vllm, name) for name in ("direct", "scheduler")]
    shapes = [shape for shape in SHAPES if not any(loaded.reason_against(*shape) for loaded in both)]
    rows = [measure(both, *shape) for shape in shapes]
    write_report(options.json, {**environment, "rows": rows})


def measure(both: list[LoadedExecutor], sentences: int, tokens: int) -> dict[str, Any]:
    """One batch shape, of random ids."""
    rng = np.random.default_rng(0)
    batches = [both[0].random_batch(rng, sentences, tokens) for _ in range(4)]
    for loaded in both:
        _rate(loaded, batches)
    rates = [[_rate(loaded, batches) for loaded in both] for _ in range(ROUNDS)]
    direct, scheduler = (statistics.median(column) * sentences for column in zip(*rates, strict=True))
    print(
        f"{sentences:>5} x {tokens:<4} direct {direct:8,.1f}   scheduler {scheduler:8,.1f} sentences/s"
        f"   {direct / scheduler:5.2f} x",
        flush=True,
    )
    return {"sentences": sentences, "tokens": tokens, "direct": direct, "scheduler": scheduler}


def _rate(loaded: LoadedExecutor, batches: "list[TokenIds]") -> float:
    """Batches per second."""
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < SECONDS_PER_ROUND:
        loaded.executor.launch(batches[count % len(batches)]).result()
        count += 1
    return count / elapsed


if __name__ == "__main__":
    main()
