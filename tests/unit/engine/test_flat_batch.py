"""The arrays of a flat batch."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tritonembed_engine.executors.flat_batch import flatten, pad

SENTENCE = st.lists(st.integers(0, (1 << 31) - 1), min_size=1, max_size=20)


@given(st.lists(SENTENCE, min_size=1, max_size=12))
def test_a_flat_batch_holds_each_sentence_between_its_starts(sentences: list[list[int]]) -> None:
    batch = flatten([np.array(sentence, dtype="<i4").tobytes() for sentence in sentences])
    for index, sentence in enumerate(sentences):
        place = slice(batch.starts[index], batch.starts[index + 1])
        assert batch.ids[place].tolist() == sentence
        assert batch.positions[place].tolist() == list(range(len(sentence)))
        assert batch.lengths[index] == len(sentence)
    assert batch.tokens == batch.starts[-1] == sum(map(len, sentences))
    assert batch.longest == max(map(len, sentences))
    assert len(batch.starts) == len(sentences) + 1


def test_the_arrays_have_the_types_that_the_model_takes() -> None:
    batch = flatten([bytes(8), bytes(4)])
    types = [array.dtype for array in (batch.ids, batch.positions, batch.starts, batch.lengths)]
    assert types == [np.int32, np.int64, np.int32, np.int32]


@given(st.lists(st.integers(1, 64), min_size=1, max_size=20), st.integers(0, 300))
def test_padding_adds_sentences_behind_the_others_and_leaves_them_as_they_are(lengths: list[int], room: int) -> None:
    batch = flatten([np.full(n, place + 1, dtype="<i4").tobytes() for place, n in enumerate(lengths)])
    padded = pad(batch, batch.tokens + room, 64)
    count = len(lengths)
    assert padded.tokens == batch.tokens + room == padded.starts[-1]
    np.testing.assert_array_equal(padded.ids[: batch.tokens], batch.ids)
    np.testing.assert_array_equal(padded.positions[: batch.tokens], batch.positions)
    np.testing.assert_array_equal(padded.starts[: count + 1], batch.starts)
    np.testing.assert_array_equal(np.diff(padded.starts), padded.lengths)
    assert padded.longest <= 64
    assert (padded.positions < 64).all()
    # As many as Bucket.rows has places for.
    assert len(padded.lengths) - count == -(-room // 64)
