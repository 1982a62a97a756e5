"""Tensors as KServe's JSON holds them (`data`), and as raw bytes."""

from math import prod
from typing import Any

import numpy as np
from tritonclient.utils import triton_to_np_dtype

from tritonembed._wire import HEADER, encode_texts, frame
from tritonembed_manager.serve.http.errors import BadRequest

_NO_JSON = ("BF16",)
_KINDS: dict[str, tuple[type, ...]] = {"b": (bool,), "i": (int,), "u": (int,), "f": (int, float)}
"""What JSON may hold, by numpy's kind of datatype."""


def from_json(name: str, datatype: str, shape: list[int], data: Any) -> bytes:
    """The raw content of an input whose elements are in a flat or nested list. Raises BadRequest."""
    elements = list(_flat(data, 0))
    expected = prod(shape)
    if len(elements) != expected:
        raise BadRequest(f"input {name}: data has {len(elements)} elements, and its shape {expected}")
    if datatype == "BYTES":
        try:
            return frame(encode_texts(elements))
        except (TypeError, ValueError) as error:
            raise BadRequest(f"input {name}: {error}") from None
    dtype = _dtype(f"input {name}", datatype)
    kinds = _KINDS[dtype.kind]
    if not all(type(element) in kinds for element in elements):
        raise BadRequest(f"input {name}: data has an element that is no {datatype}")
    if dtype.kind in "iu" and elements:
        limits = np.iinfo(dtype)
        if min(elements) < limits.min or max(elements) > limits.max:
            raise BadRequest(f"input {name}: data has an element that does not fit into {datatype}")
    try:
        with np.errstate(over="ignore"):
            return np.array(elements, dtype.newbyteorder("<")).tobytes()
    except OverflowError:
        raise BadRequest(f"input {name}: data has an element that does not fit into {datatype}") from None


def to_json(name: str, datatype: str, content: bytes) -> list[Any]:
    """The elements of an output. Raises BadRequest for what JSON cannot hold."""
    if datatype == "BYTES":
        return _texts(name, content)
    elements: list[Any] = np.frombuffer(content, _dtype(f"output {name}", datatype).newbyteorder("<")).tolist()
    return elements


def no_text(name: str) -> BadRequest:
    """Why an output is not sent as JSON."""
    return BadRequest(
        f'output {name}: its bytes are not text, which is all that JSON holds. Ask for binary output ("binary_data": '
        'true in the parameters of the output, or "binary_data_output": true in those of the request), or use '
        "/v1/embeddings"
    )


def _texts(name: str, content: bytes) -> list[str]:
    texts = []
    at = 0
    try:
        while at < len(content):
            end = at + HEADER + int.from_bytes(content[at : at + HEADER], "little")
            texts.append(content[at + HEADER : end].decode())
            at = end
    except UnicodeDecodeError:
        raise no_text(name) from None
    return texts


def _dtype(where: str, datatype: str) -> "np.dtype[Any]":
    found = None if datatype in _NO_JSON else triton_to_np_dtype(datatype)
    if found is None:
        raise BadRequest(f"{where}: a datatype that JSON data cannot have; use binary data")
    return np.dtype(found)


def _flat(data: Any, depth: int) -> Any:
    if not isinstance(data, list):
        yield data
        return
    if depth == 32:
        raise BadRequest("data is nested too deep")
    for element in data:
        if isinstance(element, list):
            yield from _flat(element, depth + 1)
        else:
            yield element
