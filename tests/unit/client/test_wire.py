import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from tritonembed import InvalidArgumentError, ServerError
from tritonembed._wire import VECTOR_DTYPES, encode_texts, encode_token_ids, frame, unframe_vectors, vector_dtype

# Every bit pattern of 32 bits: trailing zero bytes, NaNs with payloads, -0.0, subnormals, infinities.
SPECIAL = [0x00000000, 0x80000000, 0x7FC00000, 0x7FC00001, 0xFFFFFFFF, 0x00000001, 0x3F800000, 0x7F800000, 0x00010000]
FLOAT_BITS = st.one_of(st.sampled_from(SPECIAL), st.integers(0, 2**32 - 1))


@st.composite
def float_rows(draw):
    rows, columns = draw(st.integers(1, 20)), draw(st.integers(1, 40))
    bits = draw(st.lists(FLOAT_BITS, min_size=rows * columns, max_size=rows * columns))
    return np.array(bits, np.uint32).reshape(rows, columns)


@given(float_rows())
def test_every_float32_survives_to_the_bit(bits):
    content = frame([row.tobytes() for row in bits])
    vectors = unframe_vectors(content, len(bits), vector_dtype("float"))
    assert vectors.dtype == np.float32
    assert np.array_equal(vectors.view(np.uint32), bits)


@given(float_rows())
def test_vectors_framed_by_tritons_own_library_survive_to_the_bit(bits):
    elements = np.empty(len(bits), dtype=object)  # not "S": numpy would drop trailing zero bytes
    elements[:] = [row.tobytes() for row in bits]
    content = serialize_byte_tensor(elements).item()
    vectors = unframe_vectors(content, len(bits), vector_dtype("float"))
    assert np.array_equal(vectors.view(np.uint32), bits)


@given(st.sampled_from(sorted(VECTOR_DTYPES)), st.integers(1, 9), st.binary(min_size=1, max_size=40))
def test_every_embedding_type_survives_to_the_bit(kind, rows, row):
    dtype = VECTOR_DTYPES[kind]
    row = row * dtype.itemsize
    vectors = unframe_vectors(frame([row] * rows), rows, dtype)
    assert vectors.dtype == dtype
    assert [vector.tobytes() for vector in vectors] == [row] * rows


@given(st.lists(st.binary(max_size=50)))
def test_framed_elements_are_what_tritons_own_library_reads(elements):
    content = frame(elements)
    read = [bytes(element) for element in deserialize_bytes_tensor(content)] if elements else []
    assert read == elements


@given(st.lists(st.text()))
def test_texts_travel_as_their_utf8(texts):
    assert [element.decode() for element in encode_texts(texts)] == texts


@given(st.lists(st.integers(-(2**31), 2**31 - 1)))
def test_token_ids_travel_as_little_endian_int32(ids):
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
def test_what_is_not_a_str_is_a_type_error_that_names_its_index(text):
    with pytest.raises(TypeError, match=r"text\[1\] is \w+, not str"):
        encode_texts(["a", text])


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1, 2**70, -(2**70)])
def test_a_token_id_beyond_32_bits_is_refused_not_wrapped(value):
    with pytest.raises(InvalidArgumentError, match=r"token_ids\[3\].*32 bits"):
        encode_token_ids([[1, value]], 3)


@pytest.mark.parametrize("sequence", [[1.5], ["1"], [[1, 2], [3, 4]], [[1], [2, 3]], 7, "12", [None], [True]])
def test_what_is_not_a_flat_sequence_of_ints_is_a_type_error(sequence):
    with pytest.raises(TypeError, match=r"token_ids\[0\]"):
        encode_token_ids([sequence])


def test_vectors_of_different_sizes_in_one_answer_are_a_server_error():
    # 8 + 16 bytes look like 2 times 12 by their sum alone.
    with pytest.raises(ServerError, match="differ in size"):
        unframe_vectors(frame([bytes(8), bytes(16)]), 2, vector_dtype("float"))


@pytest.mark.parametrize("content", [b"", frame([b""]), frame([b"abc"]), frame([bytes(8)])[:-1], bytes(3)])
def test_content_that_holds_no_whole_vector_is_a_server_error(content):
    with pytest.raises(ServerError, match="embedding"):
        unframe_vectors(content, 1, vector_dtype("float"))


@pytest.mark.parametrize("kind", ["double", "FLOAT", None, ["float"]])
def test_an_unknown_embedding_type_is_refused_naming_the_known_ones(kind):
    with pytest.raises(InvalidArgumentError, match="embedding_type must be one of float, float16, int8"):
        vector_dtype(kind)
