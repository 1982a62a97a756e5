"""Framing of BYTES tensors, compared with tritonclient's."""

import types
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from tritonembed_engine.stub.bytes_tensors import deserialize, install, serialize

ELEMENTS = st.one_of(
    st.lists(st.binary(max_size=20), min_size=1, max_size=10),
    st.lists(st.binary(min_size=8, max_size=8), min_size=1, max_size=10),
)


def objects(elements: list[bytes]) -> Any:
    array = np.empty((len(elements), 1), dtype=object)
    array[:, 0] = elements
    return array


@given(ELEMENTS)
def test_tensors_are_framed_as_in_the_protocol_and_read_back(elements: list[bytes]) -> None:
    framed = serialize(objects(elements))
    assert framed == serialize_byte_tensor(objects(elements)).item()
    assert deserialize(memoryview(framed)).tolist() == elements == deserialize_bytes_tensor(framed).tolist()


def test_elements_of_one_size_stay_elements() -> None:
    """numpy would turn them into a matrix of characters."""
    assert deserialize(serialize(objects([b"ab", b"cd"]))).shape == (2,)


def backend(**functions: Any) -> types.ModuleType:
    module = types.ModuleType("triton_python_backend_utils")
    vars(module).update(functions)
    return module


def test_the_backends_functions_are_replaced_if_they_do_the_same() -> None:
    ours = backend(
        serialize_byte_tensor=lambda tensor: serialize_byte_tensor(tensor).item() if tensor.size else (),
        deserialize_bytes_tensor=deserialize_bytes_tensor,
    )
    assert install(ours)
    assert ours.deserialize_bytes_tensor is deserialize
    assert ours.serialize_byte_tensor(objects([b"a"])) == b"\x01\0\0\0a"
    assert ours.serialize_byte_tensor(np.empty(0, dtype=object)) == ()


@pytest.mark.parametrize(
    "functions",
    [
        {},
        {"serialize_byte_tensor": serialize_byte_tensor, "deserialize_bytes_tensor": deserialize_bytes_tensor},
        {"serialize_byte_tensor": lambda tensor: b"other", "deserialize_bytes_tensor": lambda buffer: objects([])},
    ],
)
def test_a_backend_of_another_version_is_left_alone(functions: dict[str, Any]) -> None:
    other = backend(**functions)
    assert not install(other)
    assert {name: getattr(other, name) for name in functions} == functions
