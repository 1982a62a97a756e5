"""How far a vector moves with what else is in its batch, and what equal bits cost.

    python -m tritonembed_perf.scripts.same_text MODEL [--device cpu|cuda] [--deterministic] [--vllm JSON]

Two runs of the same command print the same digest if a restart changes nothing.
"""

import hashlib
import statistics
import sys
import time
from typing import TYPE_CHECKING

import numpy as np

from tritonembed_perf.reports import describe_script
from tritonembed_perf.scripts.executor import executor_parser, load_executor

if TYPE_CHECKING:
    import numpy.typing as npt

    from tritonembed_engine.engine import EmbeddingEngine
    from tritonembed_perf.scripts.executor import LoadedExecutor

    Vectors = npt.NDArray[np.float32]

SENTENCES = 64
LONGEST = 300
"""Tokens; lengths are drawn from 3 on."""

LOADS = {"cpu": (64, 50), "cuda": (655, 50)}
"""Sentences and tokens of a request, for tokens/s."""

REQUESTS = 4
ROUNDS = 7


def main() -> None:
    """Print the two comparisons, the digest and tokens/s."""
    parser = executor_parser(__doc__, json=False)
    parser.add_argument("--deterministic", action="store_true", help="one sentence per forward pass")
    options = parser.parse_args()
    describe_script("same_text")
    loaded = load_executor(options.model, options.device, options.vllm, deterministic=options.deterministic)
    from tritonembed_engine.engine import EmbeddingEngine

    engine = EmbeddingEngine(loaded.executor)
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, min(LONGEST, loaded.files.max_length), SENTENCES)
    sentences = [loaded.random_batch(rng, 1, int(length)).ids.tobytes() for length in lengths]
    alone = np.concatenate([engine.submit([sentence]).result() for sentence in sentences])
    together = engine.submit(sentences).result()
    backwards = engine.submit(sentences[::-1]).result()[::-1]
    print(f"alone and among {SENTENCES}: {_difference(alone, together)}")
    print(f"among {SENTENCES} in another order: {_difference(together, backwards)}")
    print(f"digest of the vectors alone: {hashlib.sha256(alone.tobytes()).hexdigest()[:16]}")
    count, tokens = LOADS[options.device]
    speed = _tokens_per_second(engine, loaded, count, tokens)
    print(f"{count} x {tokens} tokens, {REQUESTS} at once: {speed / 1e3:,.1f} K tokens/s (median of {ROUNDS})")
    sys.stdout.flush()
    engine.close()


def _difference(left: "Vectors", right: "Vectors") -> str:
    wide_left, wide_right = left.astype(np.float64), right.astype(np.float64)
    norms = np.linalg.norm(wide_left, axis=1) * np.linalg.norm(wide_right, axis=1)
    least = float((np.einsum("ij,ij->i", wide_left, wide_right) / norms).min())
    other = int((left != right).any(axis=1).sum())
    return f"{other} of {len(left)} vectors have other bits, cosine {least:.7f} and more"


def _tokens_per_second(engine: "EmbeddingEngine", loaded: "LoadedExecutor", count: int, tokens: int) -> float:
    batch = [ids.tobytes() for ids in loaded.random_batch(np.random.default_rng(1), count, tokens)]
    engine.submit(batch).result()
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for future in [engine.submit(batch) for _ in range(REQUESTS)]:
            future.result()
        times.append(time.perf_counter() - started)
    return REQUESTS * count * tokens / statistics.median(times)


if __name__ == "__main__":
    main()
