"""The arrays of a flat batch."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.roberta.modeling_roberta import RobertaEmbeddings

from tritonembed_engine.executors.flat_batch import FlatBatch, begins_of, flatten, pad
from tritonembed_engine.token_ids import TokenIds

SENTENCE = st.lists(st.integers(0, (1 << 31) - 1), min_size=1, max_size=20)


def flatten_sentences(sentences: list[bytes], padding_id: int | None = None) -> FlatBatch:
    return flatten(TokenIds.join(sentences), padding_id)


@given(st.lists(SENTENCE, min_size=1, max_size=12))
def test_a_flat_batch_holds_each_sentence_between_its_starts(sentences: list[list[int]]) -> None:
    batch = flatten_sentences([np.array(sentence, dtype="<i4").tobytes() for sentence in sentences])
    for index, sentence in enumerate(sentences):
        place = slice(batch.cu_seqlens[index], batch.cu_seqlens[index + 1])
        assert batch.ids[place].tolist() == sentence
        assert batch.positions[place].tolist() == list(range(len(sentence)))
        assert batch.lengths[index] == len(sentence)
    assert batch.tokens == batch.cu_seqlens[-1] == sum(map(len, sentences))
    assert batch.longest == max(map(len, sentences))
    assert len(batch.cu_seqlens) == len(sentences) + 1


def test_the_arrays_have_the_types_that_the_model_takes() -> None:
    batch = flatten_sentences([bytes(8), bytes(4)])
    types = [array.dtype for array in (batch.ids, batch.positions, batch.cu_seqlens, batch.lengths)]
    assert types == [np.int32, np.int64, np.int32, np.int32]


@given(st.lists(st.integers(1, 64), min_size=1, max_size=20), st.integers(0, 300))
def test_padding_adds_sentences_behind_the_others_and_leaves_them_as_they_are(lengths: list[int], room: int) -> None:
    batch = flatten_sentences([np.full(n, place + 1, dtype="<i4").tobytes() for place, n in enumerate(lengths)])
    padded = pad(batch, batch.tokens + room, 64)
    count = len(lengths)
    assert padded.tokens == batch.tokens + room == padded.cu_seqlens[-1]
    np.testing.assert_array_equal(padded.ids[: batch.tokens], batch.ids)
    np.testing.assert_array_equal(padded.positions[: batch.tokens], batch.positions)
    np.testing.assert_array_equal(padded.cu_seqlens[: count + 1], batch.cu_seqlens)
    np.testing.assert_array_equal(np.diff(padded.cu_seqlens), padded.lengths)
    assert padded.longest <= 64
    assert (padded.positions < 64).all()
    # As many as Bucket.rows has places for.
    assert len(padded.lengths) - count == -(-room // 64)


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=20), min_size=1, max_size=12), st.integers(0, 2))
def test_positions_of_a_text_that_holds_padding_are_robertas(sentences: list[list[int]], padding_id: int) -> None:
    """transformers' positions begin behind the table's row for padding, ours at 0."""
    batch = flatten_sentences([np.array(sentence, dtype="<i4").tobytes() for sentence in sentences], padding_id)
    for index, sentence in enumerate(sentences):
        place = slice(batch.cu_seqlens[index], batch.cu_seqlens[index + 1])
        theirs = RobertaEmbeddings.create_position_ids_from_input_ids(torch.tensor([sentence]), padding_id)
        assert batch.positions[place].tolist() == (theirs[0] - padding_id - 1).tolist()
        assert batch.places[place].tolist() == list(range(len(sentence)))
        assert batch.ids[place].tolist() == sentence


def test_padding_counts_if_the_model_names_no_padding_token() -> None:
    batch = flatten_sentences([np.array([5, 1, 5], dtype="<i4").tobytes()])
    assert batch.positions.tolist() == batch.places.tolist() == [0, 1, 2]


def test_padding_behind_the_sentences_has_the_positions_of_tokens() -> None:
    """The id of padding may be the padding token's, whose position is outside of the table that kernels read."""
    batch = pad(flatten_sentences([np.array([5, 0, 5], dtype="<i4").tobytes()], 0), 8, 3)
    assert batch.positions.tolist() == [0, -1, 1, 0, 1, 2, 0, 1]
    assert batch.places.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]


def test_begins_are_the_first_tokens_that_are_pooled() -> None:
    begins = begins_of(flatten_sentences([bytes(12), bytes(4), bytes(20)]), [2, 0, 5])
    assert begins.tolist() == [2, 3, 9]
    assert begins.dtype == np.int32
