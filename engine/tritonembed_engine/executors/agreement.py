"""The check of the direct executor's vectors against vLLM's own, before it serves."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tritonembed_engine.distance import VECTORS, Measure
from tritonembed_engine.executors.base import Executor
from tritonembed_engine.executors.graphs import Bucket
from tritonembed_engine.token_ids import TokenIds

NOISE_MARGIN = 4.0
"""The same model in another batch shape can differ: see `VllmVectors.allowed`.

A model in fp8 is always allowed the measure's `most`: a value that is rounded to the other side of a coarse step (1/16)
moves the vector. vLLM's two answers don't show that, because they round to the same side. Measured on an H200,
BERT-base shape: our vectors and vLLM's are 0.003 apart, and each 0.001 to 0.005 from float32.
"""

LENGTHS = (1, 2, 7, 16, 33, 50, 64, 65, 100, 128, 129, 200, 350, 512)
LONGEST = {"cpu": 2048, "cuda": 8192}
"""Tokens of the longest sentence. Attention's time grows with their square, and the sentence runs four times: 8,192
tokens through 12 layers take a minute and a half on two cores."""

Vectors = npt.NDArray[np.float32]


class Disagreement(Exception):
    """The direct executor's vectors differ from vLLM's. The message has the case and the distance."""


@dataclass(frozen=True)
class VllmVectors:
    """vLLM's own answers to random sentences, from the shortest to the longest.

    allowed: the largest distance that passes. It is the measure's limit for float32 or, if that is larger, NOISE_MARGIN
    times the distance between vLLM's vectors of a sentence alone and in a batch. It is at most the measure's `most`.
    """

    sentences: list[bytes]
    lengths: list[int]
    vectors: Vectors
    allowed: float
    measure: Measure = VECTORS


def compute_vllm_vectors(
    vllm: Executor,
    vocab_size: int,
    longest: int,
    quantized: bool = False,
    padding_id: int | None = None,
    measure: Measure = VECTORS,
) -> VllmVectors:
    """Compute the answers. longest: tokens of the longest sentence. quantized: vLLM computes products in fewer than 16
    bits.

    Ids are random: a wrong kernel, mask or position shows on any text. padding_id: an id to leave out, because vLLM's
    position for it differs from that of transformers and the direct executor.
    """
    lengths = sorted({length for length in LENGTHS if length < longest} | {longest})
    rng = np.random.default_rng(0)
    drawn = [rng.integers(0, vocab_size, n, dtype="<i4") for n in lengths]
    sentences = [np.where(ids == padding_id, 0, ids).astype("<i4").tobytes() for ids in drawn]
    together = vllm.launch(TokenIds.join(sentences)).result()
    alone = np.concatenate([vllm.launch(TokenIds.join([sentence])).result() for sentence in sentences])
    noise = NOISE_MARGIN * float(measure.distances(alone, together).max())
    allowed = measure.most if quantized else min(max(measure.float32, noise), measure.most)
    return VllmVectors(sentences, lengths, together, allowed, measure)


def check_agreement(
    direct: Executor, expected: VllmVectors, captured: Sequence[Bucket], uncaptured: Sequence[Bucket] = ()
) -> float:
    """Compare single sentences, mixed batches and a batch of each shape. Returns the largest distance.

    captured: the shapes of CUDA graphs. uncaptured: other shapes. Raises Disagreement if a distance is over the allowed
    one.
    """
    cases = [(f"a sentence of {length} tokens", [i]) for i, length in enumerate(expected.lengths)]
    cases += [("a mixed batch", batch) for batch in _mixed(expected.lengths, direct.max_batch_tokens)]
    for what, shapes in (("the CUDA graph", captured), ("a batch", uncaptured)):
        cases += [
            (f"{what} of {shape.tokens} tokens, {shape.longest} at most", _fill(shape, expected.lengths))
            for shape in shapes
        ]
    largest = 0.0
    for where, chosen in cases:
        answer = direct.launch(TokenIds.join([expected.sentences[i] for i in chosen])).result()
        distance = float(expected.measure.distances(answer, expected.vectors[chosen], expected.vectors).max())
        if distance > expected.allowed:
            problem = expected.measure.over(distance, expected.allowed, "vLLM's own answer")
            raise Disagreement(f"{where}: {problem}")
        largest = max(largest, distance)
    return largest


def _mixed(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """All sentences in their order, in as few batches as the batch budget allows."""
    batches: list[list[int]] = [[]]
    for i, length in enumerate(lengths):
        if sum(lengths[j] for j in batches[-1]) + length > budget:
            batches.append([])
        batches[-1].append(i)
    return batches


def _fill(bucket: Bucket, lengths: Sequence[int]) -> list[int]:
    """Sentences that fill a bucket: the longest that it holds, then others in turn while there is room.

    If short sentences would fill its rows before its tokens, longer sentences are taken. A batch that does not fill the
    bucket well enough would not run in its graph, which would then serve unchecked.
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
