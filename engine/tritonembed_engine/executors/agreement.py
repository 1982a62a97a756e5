"""Before the direct executor serves, its answers are held against vLLM's own."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tritonembed_engine.executors.base import Executor
from tritonembed_engine.executors.buckets import Bucket

SMALLEST_COSINE = 0.9999
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Disagreement(Exception):
    """Where the two differ, and by how much."""

    where: str
    cosine: float

    def __str__(self) -> str:
        return f"{self.where}: cosine {self.cosine:.6f} to vLLM's own answer, below {SMALLEST_COSINE}"


def check_agreement(
    direct: Executor, vllm: Executor, vocab_size: int, max_length: int, captured: Sequence[Bucket]
) -> float:
    """Compare single sentences, a mixed batch and one batch in each captured bucket; gives the smallest cosine.

    Raises Disagreement below SMALLEST_COSINE. Ids are random; a wrong kernel, mask or position shows on any text.
    """
    lengths = sorted(
        {1, 2, 7, 16, 33, 50, 64, 65, 100, 128, 129, 200, max_length // 2, max_length} & set(range(1, max_length + 1))
    )
    rng = np.random.default_rng(0)
    sentences = [rng.integers(0, vocab_size, n, dtype="<i4").tobytes() for n in lengths]
    expected = vllm.launch(sentences).result()
    smallest = min(
        _compare("single sentence", direct.launch([sentence]).result(), expected[i : i + 1])
        for i, sentence in enumerate(sentences)
    )
    smallest = min(smallest, _compare("mixed batch", direct.launch(sentences).result(), expected))
    for bucket in captured:
        chosen = _fill(bucket, lengths)
        answers = direct.launch([sentences[i] for i in chosen]).result()
        smallest = min(smallest, _compare(f"CUDA graph of {bucket.tokens} tokens", answers, expected[chosen]))
    return smallest


def _fill(bucket: Bucket, lengths: Sequence[int]) -> list[int]:
    """Sentences that fill a bucket: the longest that it holds, then round and round while there is room."""
    allowed = [i for i, length in enumerate(lengths) if length <= min(bucket.longest, bucket.tokens)]
    chosen, room = [allowed[-1]], bucket.tokens - lengths[allowed[-1]]
    while len(chosen) < bucket.sentences:
        fitting = [i for i in allowed if lengths[i] <= room]
        if not fitting:
            break
        chosen.append(fitting[len(chosen) % len(fitting)])
        room -= lengths[chosen[-1]]
    return chosen


def _compare(where: str, answer: Vectors, expected: Vectors) -> float:
    norms = np.linalg.norm(answer, axis=1) * np.linalg.norm(expected, axis=1)
    cosines = np.einsum("ij,ij->i", answer, expected) / np.maximum(norms, 1e-12)
    # A NaN must not pass as "not smaller".
    smallest = float(np.nan_to_num(cosines, nan=-1.0).min())
    if smallest < SMALLEST_COSINE:
        raise Disagreement(where, smallest)
    return smallest
