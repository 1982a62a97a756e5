"""From pooled vectors to the bytes of the response, compared with references in a few lines of numpy."""

import hypothesis.extra.numpy as arrays
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tritonembed_engine.errors import InvalidArgument
from tritonembed_engine.parameters import EmbedParameters
from tritonembed_engine.vectors import Vectors, check_dimensions, normalized, wants_unit_length
from tritonembed_engine.vectors import finish as finish_unit
from tritonembed_protocol.framing import rows_as_bytes
from tritonembed_protocol.types import OUTPUT_TYPES

TYPES = ("float", "float16", "int8", "uint8", "binary", "ubinary")
WIDTHS = (1, 7, 8, 9, 13, 64, 100)


def finish(pooled: Vectors, parameters: EmbedParameters, model_normalizes: bool) -> npt.NDArray[np.generic]:
    """All steps for one request's vectors: the engine's for its batch, then the model's for the request."""
    normalize = wants_unit_length(parameters, model_normalizes)
    return finish_unit(normalized(pooled) if normalize else pooled, parameters, normalize)


def pooled(width: int, sentences: int = 5) -> npt.NDArray[np.float32]:
    return np.random.default_rng(width).normal(0, 3, (sentences, width)).astype(np.float32)


def unit(vector: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    wide = vector.astype(np.float64)
    length: float = np.sqrt((wide * wide).sum())
    return wide / length if length else wide


def reference_row(vector: npt.NDArray[np.float32], embedding_type: str) -> list[float]:
    """One row, element by element, from the contract's table. `vector` is the pooled vector."""
    scaled = unit(vector)
    if embedding_type in ("float", "float16"):
        return list(scaled)
    if embedding_type in ("int8", "uint8"):
        shift = 128 if embedding_type == "uint8" else 0
        return [max(-127, min(127, round(127 * x))) + shift for x in scaled.tolist()]
    bits = "".join("1" if x > 0 else "0" for x in vector.tolist())
    bits += "0" * (-len(bits) % 8)
    shift = 128 if embedding_type == "binary" else 0
    return [int(bits[i : i + 8], 2) - shift for i in range(0, len(bits), 8)]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("embedding_type", TYPES)
def test_every_type_is_as_in_the_contract(embedding_type: str, width: int) -> None:
    vectors = pooled(width)
    answer = finish(vectors, EmbedParameters(embedding_type=embedding_type), True)
    expected = [reference_row(vector, embedding_type) for vector in vectors]
    types = {"float": np.float32, "float16": np.float16, "int8": np.int8, "uint8": np.uint8, "binary": np.int8}
    assert answer.dtype == types.get(embedding_type, np.uint8)
    tolerance = {"float": 1e-6, "float16": 5e-4}.get(embedding_type, 0)
    np.testing.assert_allclose(answer.astype(np.float64), expected, rtol=0, atol=tolerance)


def test_the_references_cover_every_type() -> None:
    assert tuple(OUTPUT_TYPES) == TYPES


@pytest.mark.parametrize("width", WIDTHS)
def test_the_size_of_an_element_is_as_in_the_contract(width: int) -> None:
    eighth = -(-width // 8)
    expected = dict(zip(TYPES, (4 * width, 2 * width, width, width, eighth, eighth), strict=True))
    for embedding_type, size in expected.items():
        rows = rows_as_bytes(finish(pooled(width), EmbedParameters(embedding_type=embedding_type), True))
        assert [len(row) for row in rows] == [size] * 5


def test_bits_begin_in_the_highest_place_and_end_in_zeros() -> None:
    vector = np.array([[1, -1, -1, -1, -1, -1, -1, -1, 1, 1]], dtype=np.float32)
    assert rows_as_bytes(finish(vector, EmbedParameters(embedding_type="ubinary"), True)) == [bytes([0x80, 0xC0])]
    assert rows_as_bytes(finish(vector, EmbedParameters(embedding_type="binary"), True)) == [bytes([0x00, 0x40])]


def test_zero_and_negative_zero_are_not_positive_bits() -> None:
    vector = np.array([[0.0, -0.0, 1e-45]], dtype=np.float32)
    assert finish(vector, EmbedParameters(embedding_type="ubinary"), False).tolist() == [[0b0010_0000]]


@pytest.mark.parametrize("dimensions", [1, 3, 8, 13])
@pytest.mark.parametrize("embedding_type", TYPES)
def test_dimensions_shorten_and_then_normalise_again(embedding_type: str, dimensions: int) -> None:
    vectors = pooled(13)
    answer = finish(vectors, EmbedParameters(dimensions=dimensions, embedding_type=embedding_type), True)
    expected = [reference_row(vector[:dimensions], embedding_type) for vector in vectors]
    tolerance = {"float": 1e-6, "float16": 5e-4}.get(embedding_type, 0)
    np.testing.assert_allclose(answer.astype(np.float64), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("asked", "expected"), [(None, 5), (3, 3), (9, 9), (13, 13)])
@pytest.mark.parametrize("normalize", [False, True])
def test_the_models_own_dimensions_count_if_a_request_names_none(
    normalize: bool, asked: int | None, expected: int
) -> None:
    vectors = normalized(pooled(13)) if normalize else pooled(13)
    answer = finish_unit(vectors, EmbedParameters(dimensions=asked), normalize, 5)
    np.testing.assert_array_equal(answer, finish_unit(vectors, EmbedParameters(dimensions=expected), normalize))
    assert answer.shape == (5, expected)


def test_dimensions_only_shorten_if_nothing_is_normalised() -> None:
    vectors = pooled(13)
    np.testing.assert_array_equal(finish(vectors, EmbedParameters(dimensions=5, normalize=False), True), vectors[:, :5])


@pytest.mark.parametrize(
    ("asked", "model", "normalises"),
    [(None, True, True), (None, False, False), (True, False, True), (True, True, True), (False, True, False)],
)
def test_normalize_overrides_the_models_setting(asked: bool | None, model: bool, normalises: bool) -> None:
    vectors = pooled(9)
    answer = finish(vectors, EmbedParameters(normalize=asked), model)
    expected = np.stack([unit(vector) for vector in vectors]) if normalises else vectors
    np.testing.assert_allclose(answer, expected, rtol=1e-6)


@pytest.mark.parametrize("embedding_type", ["int8", "uint8"])
def test_bytes_are_of_the_normalised_vector_whatever_the_models_setting(embedding_type: str) -> None:
    parameters = EmbedParameters(embedding_type=embedding_type)
    np.testing.assert_array_equal(finish(pooled(9), parameters, False), finish(pooled(9), parameters, True))


@pytest.mark.parametrize("embedding_type", TYPES)
def test_a_vector_of_zeros_stays_zero(embedding_type: str) -> None:
    answer = finish(np.zeros((2, 9), dtype=np.float32), EmbedParameters(embedding_type=embedding_type), True)
    assert set(answer.ravel().tolist()) == {{"uint8": 128, "binary": -128}.get(embedding_type, 0)}


def test_int8_saturates_at_127_on_both_sides() -> None:
    # Normalisation in float32 may leave a single value just above 1.
    vectors = np.array([[3.0, 0.0], [-3.0, 0.0], [1e-20, 0.0]], dtype=np.float32)
    answer = finish(vectors, EmbedParameters(embedding_type="int8"), True)
    assert answer[:2, 0].tolist() == [127, -127]
    assert answer.min() >= -127
    assert finish(vectors, EmbedParameters(embedding_type="uint8"), True)[:2, 0].tolist() == [255, 1]


@pytest.mark.parametrize(("embedding_type", "ends"), [("int8", [-127, 127]), ("uint8", [1, 255])])
def test_a_vector_that_rounding_leaves_longer_than_1_saturates_and_does_not_wrap(
    embedding_type: str, ends: list[int]
) -> None:
    beyond = np.array([[-1.01, 1.01], [-9.0, 9.0]], dtype=np.float32)
    assert finish_unit(beyond, EmbedParameters(embedding_type=embedding_type), True).tolist() == [ends, ends]


@given(arrays.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=st.floats(width=32)))
def test_int8_never_wraps_around(vectors: npt.NDArray[np.float32]) -> None:
    with np.errstate(all="ignore"):
        answer = finish(vectors, EmbedParameters(embedding_type="int8"), True).astype(np.int16)
    finite = np.isfinite(normalized_quietly(vectors))
    signs = np.sign(answer[finite])
    assert np.all((signs == 0) | (signs == np.sign(vectors[finite])))
    assert np.all(np.abs(answer[finite]) <= 127)


def normalized_quietly(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    with np.errstate(all="ignore"):
        return normalized(vectors)


@given(st.binary(min_size=0, max_size=400), st.integers(1, 9), st.sampled_from(["<f4", "<f2", "i1", "u1"]))
def test_rows_survive_bit_for_bit(data: bytes, width: int, dtype: str) -> None:
    """Random bytes and the next test include NaN with any payload, -0.0, subnormals and trailing zero bytes."""
    size = width * np.dtype(dtype).itemsize
    data = data[: len(data) // size * size]
    rows = np.frombuffer(data, dtype=dtype).reshape(-1, width)
    expected = [data[i : i + size] for i in range(0, len(data), size)]
    assert rows_as_bytes(rows) == expected


@pytest.mark.parametrize(
    "bits", [0x7FC00001, 0xFFC00000, 0x7F800001, 0x80000000, 0x00000001, 0x807FFFFF, 0x3F800000, 0, 0x7F800000]
)
def test_an_awkward_float_survives_bit_for_bit(bits: int) -> None:
    rows = np.full((3, 2), bits, dtype="<u4").view("<f4")
    answer = finish(rows, EmbedParameters(normalize=False), True)
    assert rows_as_bytes(answer) == [bits.to_bytes(4, "little") * 2] * 3


def test_rows_of_a_slice_or_of_another_byte_order_are_little_endian_and_whole() -> None:
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    expected = [row[:3].astype("<f4").tobytes() for row in rows]
    assert rows_as_bytes(rows[:, :3]) == expected
    assert rows_as_bytes(rows[:, :3].astype(">f4")) == expected


def test_more_dimensions_than_the_model_has_are_refused() -> None:
    check_dimensions(None, 8)
    check_dimensions(8, 8)
    with pytest.raises(InvalidArgument, match="9 is over the model's 8") as refused:
        check_dimensions(9, 8)
    assert refused.value.name == "dimensions"
