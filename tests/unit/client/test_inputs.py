import itertools
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tritonembed import InvalidArgumentError
from tritonembed.inputs import batches, check_batch_size, encode_texts, encode_token_ids


def identity(part, _first):
    return part


@given(st.lists(st.binary(max_size=20)), st.integers(1, 7), st.integers(1, 50))
def test_batches_keep_order_and_respect_both_limits(elements, batch_size, max_bytes):
    parts = list(batches(elements, identity, batch_size, max_bytes))
    assert [element for part in parts for element in part] == elements
    assert all(1 <= len(part) <= batch_size for part in parts)
    assert all(len(part) == 1 or sum(map(len, part)) <= max_bytes for part in parts)


def test_batches_are_filled_up():
    assert [len(part) for part in batches([b""] * 130, identity, 64)] == [64, 64, 2]


def test_an_endless_source_is_read_only_as_far_as_the_next_batch_needs():
    taken = itertools.count()
    parts = batches((str(number).encode() for number in taken), identity, 3)
    assert next(parts) == [b"0", b"1", b"2"]
    assert next(taken) == 3


def test_each_part_is_encoded_with_the_index_of_its_first_input():
    seen = []
    list(batches([b"x"] * 5, lambda part, first: seen.append((first, len(part))) or part, 2))
    assert seen == [(0, 2), (2, 2), (4, 1)]


@pytest.mark.parametrize("batch_size", [0, -1, 1025])
def test_a_batch_size_that_the_server_refuses_is_a_value_error(batch_size):
    with pytest.raises(ValueError, match="from 1 to 1024"):
        check_batch_size(batch_size)


@given(st.lists(st.text()))
def test_texts_are_sent_as_their_utf8(texts):
    assert [element.decode() for element in encode_texts(texts)] == texts


@given(st.lists(st.integers(-(2**31), 2**31 - 1)))
def test_token_ids_are_sent_as_little_endian_int32(ids):
    assert encode_token_ids([ids]) == [struct.pack(f"<{len(ids)}i", *ids)]


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint16, ">i4"])
def test_token_ids_may_be_arrays_of_any_integers(dtype):
    assert encode_token_ids([np.array([1, 2, 60000], dtype)]) == [struct.pack("<3i", 1, 2, 60000)]


def test_a_lone_surrogate_is_named_by_its_index_and_never_shown():
    with pytest.raises(InvalidArgumentError) as caught:
        encode_texts(["fine", "secret \ud800 words"], 100)
    assert caught.value.message == "text[101]: a lone surrogate at character 7 has no UTF-8 form"
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("text", [b"bytes", 3, None, ["a"]])
def test_an_input_that_is_not_a_str_is_a_type_error_that_names_its_index(text):
    with pytest.raises(TypeError, match=r"text\[1\] is \w+, not str"):
        encode_texts(["a", text])


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1, 2**70, -(2**70)])
def test_a_token_id_beyond_32_bits_is_refused_not_wrapped(value):
    with pytest.raises(InvalidArgumentError, match=r"token_ids\[3\].*32 bits"):
        encode_token_ids([[1, value]], 3)


@pytest.mark.parametrize("sequence", [[1.5], ["1"], [[1, 2], [3, 4]], [[1], [2, 3]], 7, "12", [None], [True]])
def test_an_input_that_is_not_a_flat_sequence_of_ints_is_a_type_error(sequence):
    with pytest.raises(TypeError, match=r"token_ids\[0\]"):
        encode_token_ids([sequence])
