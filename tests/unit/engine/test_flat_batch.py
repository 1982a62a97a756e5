"""The arrays of a flat batch."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tritonembed_engine.executors.flat_batch import flatten

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
