"""Before the direct executor serves, its answers are held against vLLM's own."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tritonembed_engine.executors.base import Executor
from tritonembed_engine.executors.buckets import Bucket

LARGEST_DISTANCE = 1e-4
"""1 - cosine. In 16-bit types the same model in another batch shape can differ by more: see `Reference.allowed`."""

NOISE_MARGIN = 4.0
LARGEST_ALLOWED = 0.01
"""However much vLLM differs from itself: beyond it nothing could be told from a wrong vector.

A model in fp8 is allowed this much anyway: a value that falls to the other side of one of its coarse steps (1/16) moves
the vector, and vLLM alone and in a batch fall to the same side. Measured on an H200, BERT-base shape: ours and vLLM's
are 0.003 apart, and each 0.001 to 0.005 from float32.
"""

LENGTHS = (1, 2, 7, 16, 33, 50, 64, 65, 100, 128, 129, 200, 350, 512)
Vectors = npt.NDArray[np.float32]


class Disagreement(Exception):
    """Where the two differ, and by how much."""


@dataclass(frozen=True)
class Reference:
    """vLLM's own answers to random sentences, from the shortest to the longest.

    allowed: the distance (1 - cosine) that passes: LARGEST_DISTANCE, or, where rounding alone is larger than that, what
    vLLM differs from itself between a sentence alone and in a batch, times NOISE_MARGIN; at most LARGEST_ALLOWED.
    """

    sentences: list[bytes]
    lengths: list[int]
    vectors: Vectors
    allowed: float


def make_reference(
    vllm: Executor, vocab_size: int, max_length: int, quantized: bool = False, padding_id: int | None = None
) -> Reference:
    """Ask vLLM. quantized: it computes products in fewer than 16 bits.

    Ids are random: a wrong kernel, mask or position shows on any text. padding_id: one that does not occur in them,
    because vLLM gives it another position than transformers and the direct executor do.
    """
    lengths = sorted({length for length in LENGTHS if length < max_length} | {max_length})
    rng = np.random.default_rng(0)
    drawn = [rng.integers(0, vocab_size, n, dtype="<i4") for n in lengths]
    sentences = [np.where(ids == padding_id, 0, ids).astype("<i4").tobytes() for ids in drawn]
    together = vllm.launch(sentences).result()
    alone = np.concatenate([vllm.launch([sentence]).result() for sentence in sentences])
    allowed = LARGEST_ALLOWED if quantized else max(LARGEST_DISTANCE, NOISE_MARGIN * _distance(alone, together))
    return Reference(sentences, lengths, together, min(allowed, LARGEST_ALLOWED))


def check_agreement(
    direct: Executor, reference: Reference, captured: Sequence[Bucket], uncaptured: Sequence[Bucket] = ()
) -> float:
    """Compare single sentences, mixed batches and a batch of each shape; gives the largest distance.

    captured: what CUDA graphs run. uncaptured: what else is to be looked at. Raises Disagreement where the distance is
    over what the reference allows.
    """
    cases = [(f"a sentence of {length} tokens", [i]) for i, length in enumerate(reference.lengths)]
    cases += [("a mixed batch", batch) for batch in _mixed(reference.lengths, direct.max_batch_tokens)]
    for what, shapes in (("the CUDA graph", captured), ("a batch", uncaptured)):
        cases += [
            (f"{what} of {shape.tokens} tokens, {shape.longest} at most", _fill(shape, reference.lengths))
            for shape in shapes
        ]
    largest = 0.0
    for where, chosen in cases:
        answer = direct.launch([reference.sentences[i] for i in chosen]).result()
        distance = _distance(answer, reference.vectors[chosen])
        if distance > reference.allowed:
            raise Disagreement(
                f"{where}: cosine {1 - distance:.6f} to vLLM's own answer, below {1 - reference.allowed:.6f}"
            )
        largest = max(largest, distance)
    return largest


def _mixed(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """All sentences, in as few batches as the budget of tokens allows in their order."""
    batches: list[list[int]] = [[]]
    for i, length in enumerate(lengths):
        if sum(lengths[j] for j in batches[-1]) + length > budget:
            batches.append([])
        batches[-1].append(i)
    return batches


def _fill(bucket: Bucket, lengths: Sequence[int]) -> list[int]:
    """Sentences that fill a bucket: the longest that it holds, then round and round while there is room.

    Where short ones would use up its sentences before its tokens, longer ones are taken: in a bucket that is not filled
    well enough the batch would not run, and the graph would serve unchecked.
    """
    allowed = [i for i, length in enumerate(lengths) if length <= min(bucket.longest, bucket.tokens)]
    chosen, room = [allowed[-1]], bucket.tokens - lengths[allowed[-1]]
    while len(chosen) < bucket.sentences:
        fitting = [i for i in allowed if lengths[i] <= room]
        if not fitting:
            break
        places = bucket.sentences - len(chosen)
        filling = [i for i in fitting if lengths[i] * places >= room] or fitting[-1:]
        chosen.append(filling[len(chosen) % len(filling)])
        room -= lengths[chosen[-1]]
    return chosen


def _distance(answer: Vectors, expected: Vectors) -> float:
    if answer.shape != expected.shape:
        return 2.0
    norms = np.linalg.norm(answer, axis=1) * np.linalg.norm(expected, axis=1)
    cosines = np.einsum("ij,ij->i", answer, expected) / np.maximum(norms, 1e-12)
    # A NaN must not pass as "not larger".
    return float(1 - np.nan_to_num(cosines, nan=-1.0).min())
