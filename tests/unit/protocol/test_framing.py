import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from tritonembed_protocol.framing import FramingError, frame, rows_as_bytes, unframe, unframe_vectors
from tritonembed_protocol.types import OUTPUT_TYPES

# All patterns of 32 bits: trailing zero bytes, NaNs with payloads, -0.0, subnormals, infinities.
SPECIAL = [0x00000000, 0x80000000, 0x7FC00000, 0x7FC00001, 0xFFFFFFFF, 0x00000001, 0x3F800000, 0x7F800000, 0x00010000]
FLOAT32 = OUTPUT_TYPES["float"].dtype
FLOAT_BITS = st.one_of(st.sampled_from(SPECIAL), st.integers(0, 2**32 - 1))


@st.composite
def float_rows(draw):
    rows, columns = draw(st.integers(1, 20)), draw(st.integers(1, 40))
    bits = draw(st.lists(FLOAT_BITS, min_size=rows * columns, max_size=rows * columns))
    return np.array(bits, np.uint32).reshape(rows, columns)


@given(float_rows())
def test_every_float32_survives_to_the_bit(bits):
    content = frame([row.tobytes() for row in bits])
    vectors = unframe_vectors(content, len(bits), FLOAT32)
    assert vectors.dtype == np.float32
    assert np.array_equal(vectors.view(np.uint32), bits)


@given(float_rows())
def test_vectors_framed_by_tritons_own_library_survive_to_the_bit(bits):
    elements = np.empty(len(bits), dtype=object)  # not "S": numpy would drop trailing zero bytes
    elements[:] = [row.tobytes() for row in bits]
    content = serialize_byte_tensor(elements).item()
    vectors = unframe_vectors(content, len(bits), FLOAT32)
    assert np.array_equal(vectors.view(np.uint32), bits)


@given(st.sampled_from(sorted(OUTPUT_TYPES)), st.integers(1, 9), st.binary(min_size=1, max_size=40))
def test_every_embedding_type_survives_to_the_bit(kind, rows, row):
    dtype = OUTPUT_TYPES[kind].dtype
    row = row * dtype.itemsize
    vectors = unframe_vectors(frame([row] * rows), rows, dtype)
    assert vectors.dtype == dtype
    assert [vector.tobytes() for vector in vectors] == [row] * rows


@given(st.lists(st.binary(max_size=50)))
def test_tritons_own_library_reads_framed_elements(elements):
    content = frame(elements)
    read = [bytes(element) for element in deserialize_bytes_tensor(content)] if elements else []
    assert read == elements


def test_vectors_of_different_sizes_in_one_response_are_refused():
    # The sum of 8 + 16 bytes alone looks like 2 times 12.
    with pytest.raises(FramingError, match="differ in size"):
        unframe_vectors(frame([bytes(8), bytes(16)]), 2, FLOAT32)


@pytest.mark.parametrize("content", [b"", frame([b""]), frame([b"abc"]), frame([bytes(8)])[:-1], bytes(3)])
def test_content_that_holds_no_whole_vector_is_refused(content):
    with pytest.raises(FramingError, match="embedding"):
        unframe_vectors(content, 1, FLOAT32)


@given(st.lists(st.binary(max_size=50)))
def test_elements_come_back_as_they_were_framed(elements):
    assert unframe(frame(elements)) == elements


@given(st.lists(st.binary(max_size=9), min_size=1), st.integers(1, 4))
def test_content_that_ends_within_an_element_is_refused(elements, cut):
    with pytest.raises(FramingError, match="ends within"):
        unframe(frame([*elements, b"last"])[:-cut])


@given(float_rows())
def test_rows_become_their_little_endian_bytes(bits):
    assert rows_as_bytes(bits.astype(">u4")) == [row.tobytes() for row in bits]
