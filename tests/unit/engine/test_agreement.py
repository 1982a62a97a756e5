"""The direct executor serves only if it agrees with vLLM. Both are fakes here."""

import re
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from tests.unit.engine.fake_executor import Array, FakeExecutor

from tritonembed_engine.distance import VECTORS
from tritonembed_engine.executors.agreement import (
    NOISE_MARGIN,
    Disagreement,
    VllmVectors,
    check_agreement,
    compute_vllm_vectors,
)
from tritonembed_engine.executors.graphs import Bucket

VOCABULARY, MAXIMUM, WIDTH = 1000, 256, 32
BUCKETS = [Bucket(256, 64, 16), Bucket(512, 256, 32), Bucket(1024, 128, 64)]


def embed(sentences: Sequence[bytes]) -> Array:
    """A model: the vector of a sentence does not depend on the rest of the batch."""
    seeds = [np.frombuffer(sentence, dtype="<u4") for sentence in sentences]
    return np.stack([np.random.default_rng(seed).normal(size=WIDTH) for seed in seeds]).astype(np.float32)


def executor(compute: Callable[[Sequence[bytes]], Array] = embed) -> FakeExecutor:
    made = FakeExecutor(max_batch_tokens=4096, max_batch_sentences=64)
    made.compute = compute
    return made


@pytest.fixture(scope="module")
def reference() -> VllmVectors:
    return compute_vllm_vectors(executor(), VOCABULARY, MAXIMUM)


def turned(vectors: Array, cosine: float) -> Array:
    """Vectors with this cosine to the given vectors."""
    other = np.random.default_rng(7).normal(size=vectors.shape)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    other -= vectors * (other * vectors).sum(axis=1, keepdims=True) / length**2
    other *= length / np.linalg.norm(other, axis=1, keepdims=True)
    return (cosine * vectors + np.sqrt(1 - cosine**2) * other).astype(np.float32)


def tokens(sentences: Sequence[bytes]) -> int:
    return sum(map(len, sentences)) // 4


def test_a_batch_that_no_graph_runs_is_checked_too(reference: VllmVectors) -> None:
    large = Bucket(3000, MAXIMUM, 64)
    broken = executor(lambda sentences: turned(embed(sentences), 0.9 if tokens(sentences) > 2000 else 1.0))
    assert check_agreement(broken, reference, BUCKETS) <= 1e-6
    with pytest.raises(Disagreement, match=r"^a batch of 3000 tokens, 256 at most: "):
        check_agreement(broken, reference, BUCKETS, [large])


def test_a_budget_below_the_mixed_batch_is_kept(reference: VllmVectors) -> None:
    """Buffers are as large as the budget."""
    direct = executor()
    direct.max_batch_tokens = MAXIMUM
    check_agreement(direct, reference, [])
    assert max(map(tokens, direct.batches)) <= MAXIMUM
    assert sorted(sentence for batch in direct.batches for sentence in batch) == sorted(2 * reference.sentences)


def in_bucket(bucket: Bucket, break_it: Callable[[Array], Array]) -> Callable[[Sequence[bytes]], Array]:
    """An executor that is wrong only in one bucket's graph."""

    def compute(sentences: Sequence[bytes]) -> Array:
        longest = max(map(len, sentences)) // 4
        held = next((b for b in sorted(BUCKETS) if b.holds(tokens(sentences), len(sentences), longest)), None)
        broken = held == bucket and len(sentences) > 1
        return break_it(embed(sentences)) if broken else embed(sentences)

    return compute


def test_an_executor_that_agrees_passes_after_every_shape_was_checked(reference: VllmVectors) -> None:
    direct = executor()
    assert check_agreement(direct, reference, BUCKETS) <= 1e-6
    alone = [tokens(batch) for batch in direct.batches if len(batch) == 1]
    assert alone == reference.lengths
    assert alone[0] == 1
    assert alone[-1] == MAXIMUM
    together = [batch for batch in direct.batches if len(batch) > 1]
    assert sorted(together[0], key=len) == reference.sentences
    assert len(together) == 1 + len(BUCKETS)
    for batch, bucket in zip(together[1:], BUCKETS, strict=True):
        assert bucket.holds(tokens(batch), len(batch), max(map(len, batch)) // 4)


def test_the_reference_has_only_ids_of_the_vocabulary_and_no_sentence_over_the_maximum() -> None:
    for maximum in (1, 3, 512, 600):
        made = compute_vllm_vectors(executor(), 5, maximum)
        ids = np.frombuffer(b"".join(made.sentences), dtype="<i4")
        assert ids.min() >= 0
        assert ids.max() <= 4
        assert made.lengths == [len(sentence) // 4 for sentence in made.sentences]
        assert max(made.lengths) == maximum


@pytest.mark.parametrize("bucket", BUCKETS)
@pytest.mark.parametrize(
    "break_it",
    [
        lambda vectors: turned(vectors, 0.99),
        lambda vectors: vectors[::-1],
        lambda vectors: np.roll(vectors, 1, axis=0),
        lambda vectors: -vectors,
        lambda vectors: np.zeros_like(vectors),
        lambda vectors: np.where(np.arange(len(vectors))[:, None] == 2, np.nan, vectors),
        lambda vectors: np.where(np.arange(len(vectors))[:, None] == 2, np.inf, vectors),
        lambda vectors: np.where(np.arange(WIDTH) == 3, np.nan, vectors),
        lambda vectors: vectors[:-1],
    ],
    ids=[
        "turned",
        "reversed",
        "shifted",
        "negated",
        "zeros",
        "one row nan",
        "one row inf",
        "one column nan",
        "a row less",
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_an_error_in_one_graph_alone_is_refused_and_the_graph_named(
    reference: VllmVectors, break_it: Callable[[Array], Array], bucket: Bucket
) -> None:
    direct = executor(in_bucket(bucket, break_it))
    where = f"the CUDA graph of {bucket.tokens} tokens, {bucket.longest} at most"
    with pytest.raises(Disagreement, match=f"^{re.escape(where)}: "):
        check_agreement(direct, reference, BUCKETS)
    assert check_agreement(direct, reference, [b for b in BUCKETS if b != bucket]) <= 1e-6


@pytest.mark.parametrize("length", [1, 64, 256])
def test_a_sentence_that_is_wrong_alone_is_refused_and_its_length_named(reference: VllmVectors, length: int) -> None:
    def compute(sentences: Sequence[bytes]) -> Array:
        wrong = len(sentences) == 1 and tokens(sentences) == length
        return -embed(sentences) if wrong else embed(sentences)

    with pytest.raises(Disagreement, match=rf"^a sentence of {length} tokens: cosine -1\.0"):
        check_agreement(executor(compute), reference, BUCKETS)


def test_a_batch_whose_rows_are_swapped_is_refused(reference: VllmVectors) -> None:
    with pytest.raises(Disagreement, match=r"^a mixed batch: "):
        check_agreement(executor(lambda sentences: embed(sentences)[::-1]), reference, [])


def test_the_limit_is_a_cosine_of_0_9999(reference: VllmVectors) -> None:
    assert reference.allowed == VECTORS.float32 == pytest.approx(1 - 0.9999)
    just_right = executor(lambda sentences: turned(embed(sentences), 0.99995))
    assert check_agreement(just_right, reference, BUCKETS) == pytest.approx(5e-5, rel=0.05)
    with pytest.raises(Disagreement, match=r"cosine 0\.9998\d+ to vLLM's own answer, below 0\.9999"):
        check_agreement(executor(lambda sentences: turned(embed(sentences), 0.9998)), reference, BUCKETS)


def noisy_reference(cosine: float) -> VllmVectors:
    """vLLM whose vector of a sentence in a batch has this cosine to that of the sentence alone."""

    def compute(sentences: Sequence[bytes]) -> Array:
        return embed(sentences) if len(sentences) == 1 else turned(embed(sentences), cosine)

    return compute_vllm_vectors(executor(compute), VOCABULARY, MAXIMUM)


def test_vllms_own_rounding_widens_the_limit() -> None:
    noisy = noisy_reference(0.9995)
    assert noisy.allowed == pytest.approx(NOISE_MARGIN * 0.0005, rel=0.02)
    check_agreement(executor(), noisy, BUCKETS)
    with pytest.raises(Disagreement):
        check_agreement(executor(lambda sentences: turned(embed(sentences), 0.995)), noisy, BUCKETS)


@pytest.mark.parametrize("cosine", [0.9, -1.0, float("nan")])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_reference_that_disagrees_with_itself_lets_nothing_wrong_pass(cosine: float) -> None:
    noisy = noisy_reference(cosine)
    assert noisy.allowed == VECTORS.most
    with pytest.raises(Disagreement):
        check_agreement(executor(lambda sentences: turned(embed(sentences), 0.5)), noisy, BUCKETS)
