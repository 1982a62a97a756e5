"""The shapes that CUDA graphs are captured for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tritonembed_engine.executors.agreement import LENGTHS, _fill
from tritonembed_engine.executors.graphs import LAUNCH_BOUND_TOKENS, Bucket, buckets
from tritonembed_engine.executors.loading import SENTENCES_PER_BATCH

LONGEST = (64, 128, 512)


def test_buckets_are_sorted_and_distinct() -> None:
    shapes = buckets(32768, 1024, LONGEST)
    assert shapes == sorted(set(shapes))
    assert {shape.longest for shape in shapes} == set(LONGEST)


@given(st.integers(64, 70_000), st.integers(8, 4096))
def test_no_bucket_is_over_the_budget_of_a_batch(max_tokens: int, max_sentences: int) -> None:
    for bucket in buckets(max_tokens, max_sentences, LONGEST):
        assert bucket.tokens <= max_tokens
        assert bucket.sentences <= max_sentences


@given(st.integers(1, 64), st.integers(1, 512))
def test_a_small_batch_that_a_replay_serves_finds_a_bucket(sentences: int, length: int) -> None:
    tokens = sentences * length
    found = next((b for b in buckets(16384, 1024, LONGEST) if b.holds(tokens, sentences, length)), None)
    if tokens <= LAUNCH_BOUND_TOKENS and sentences * 16 <= tokens:
        assert found is not None
    if found is not None:
        assert (tokens, sentences, length) <= (found.tokens, found.sentences, found.longest)


@pytest.mark.parametrize(
    ("batch", "held"),
    [
        ((1024, 64, 64), True),
        ((1, 1, 1), True),
        ((1025, 64, 64), False),
        ((1024, 65, 64), False),
        ((1024, 64, 65), False),
    ],
)
def test_a_bucket_holds_what_fits_in_every_respect(batch: tuple[int, int, int], held: bool) -> None:
    assert Bucket(tokens=1024, longest=64, sentences=64).holds(*batch) is held


def test_above_the_launch_bound_size_only_a_well_filled_bucket_is_used() -> None:
    bucket = Bucket(tokens=16384, longest=64, sentences=1024)
    assert bucket.holds(14_895, 300, 64)
    assert not bucket.holds(14_894, 300, 64)


def usable(shape: Bucket, shapes: list[Bucket]) -> bool:
    """Whether any batch is served by this bucket, and not by a smaller bucket or eagerly."""
    fullest = (min(shape.tokens, shape.sentences * shape.longest), shape.sentences, min(shape.longest, shape.tokens))
    return next((s for s in shapes if s.holds(*fullest)), None) == shape


@pytest.mark.parametrize("budget", [8192, 32768, 65536])
@pytest.mark.parametrize("maximum", [40, 60, 128, 512, 8192])
def test_the_check_at_load_runs_in_the_graph_of_every_bucket_that_serves(budget: int, maximum: int) -> None:
    """If a bucket's batch ran in another bucket, or eagerly, the bucket's graph would serve unchecked."""
    shapes = buckets(budget, SENTENCES_PER_BATCH, sorted({min(64, maximum), min(128, maximum), maximum}))
    known = sorted({length for length in LENGTHS if length < maximum} | {maximum})
    serving = [shape for shape in shapes if usable(shape, shapes)]
    assert len(serving) > len(shapes) / 2
    for shape in serving:
        lengths = [known[i] for i in _fill(shape, known)]
        assert next(s for s in shapes if s.holds(sum(lengths), len(lengths), max(lengths))) == shape
