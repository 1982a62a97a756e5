"""Tensors as JSON: the `data` of KServe's inputs and outputs, and vectors, many numbers at once.

`json.dumps` takes half a microsecond per number, and a request of 64 sentences has 49,152 numbers. In `json_rows` every
number is a row of 16 bytes, such as ",-1.23456789e-02" (with a space if there is no minus). A row has four parts of
four bytes, which are looked up in tables, column by column for a whole matrix. Nine significant digits restore every
float32 exactly.
"""

from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.utils import triton_to_np_dtype

from tritonembed.inputs import encode_texts
from tritonembed_manager.router.apis.http.errors import BadRequest
from tritonembed_protocol.framing import HEADER, frame

_NO_JSON = ("BF16",)
_KINDS: dict[str, tuple[type, ...]] = {"b": (bool,), "i": (int,), "u": (int,), "f": (int, float)}
"""Types that JSON's elements may have, by numpy's kind of datatype."""


def from_json(name: str, datatype: str, shape: list[int], data: Any) -> bytes:
    """The raw content of an input, from a flat or nested list of its elements. Raises BadRequest."""
    if not isinstance(data, list):
        raise BadRequest(f"input {name}: data is not a list")
    elements = list(_flat(data, 0))
    expected = prod(shape)
    if len(elements) != expected:
        raise BadRequest(f"input {name}: data has {len(elements)} elements, but its shape {expected}")
    if datatype == "BYTES":
        try:
            return frame(encode_texts(elements))
        except (TypeError, ValueError) as error:
            raise BadRequest(f"input {name}: {error}") from None
    dtype = _dtype(f"input {name}", datatype)
    kinds = _KINDS[dtype.kind]
    if not all(type(element) in kinds for element in elements):
        raise BadRequest(f"input {name}: data has an element that is not {datatype}")
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
    """The elements of an output. Raises BadRequest if JSON can't hold them."""
    if datatype == "BYTES":
        return _texts(name, content)
    elements: list[Any] = np.frombuffer(content, _dtype(f"output {name}", datatype).newbyteorder("<")).tolist()
    return elements


def no_text(name: str) -> BadRequest:
    """The error for an output that JSON can't hold."""
    numbers = 'numbers ("as": "FP32" in the parameters), or ' if name == "embedding" else ""
    return BadRequest(
        f"output {name}: its bytes are not text, and JSON holds only text. Request {numbers}binary output "
        '("binary_data": true in the parameters of the output, or "binary_data_output": true in those of the request), '
        "or use /v1/embeddings"
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
        raise BadRequest(f"{where}: JSON data can't have this datatype; use binary data")
    return np.dtype(found)


def _flat(data: list[Any], depth: int) -> Any:
    if depth == 32:
        raise BadRequest("data is nested too deep")
    for element in data:
        if isinstance(element, list):
            yield from _flat(element, depth + 1)
        else:
            yield element


_AT_ONCE = 8192
"""Numbers per step, so that intermediate results fit into a core's cache."""

_BIAS = 127
_POWERS = np.floor(np.log10(2.0) * np.arange(-_BIAS, 256 - _BIAS)).astype(np.int8)
"""By float32's exponent field: the power of ten of the smallest number that has it (field 0 is handled separately)."""
_LOWEST, _HIGHEST = -45, 38
_SCALES = np.array([10.0 ** (8 - power) for power in range(_LOWEST, _HIGHEST + 1)])
"""By power of ten, from the lowest: the factor that brings nine digits before the point."""
_TEN_DIGITS = 10.0**9


def _table(entries: list[str]) -> npt.NDArray[np.uint32]:
    return np.frombuffer("".join(entries).encode(), np.uint32)


_HEADS = _table([f",{sign}{digit}." for sign in " -" for digit in range(10)])
_FOUR_DIGITS = _table([f"{number:04d}" for number in range(10_000)])
_EXPONENTS = _table([f"e{power:+03d}" for power in range(_LOWEST, _HIGHEST + 1)])


def json_rows(vectors: npt.NDArray[np.float32]) -> list[bytes]:
    """Each row of an (n, d) matrix of finite float32 as the text of a JSON list; d is at least 1."""
    count, width = vectors.shape
    rows = max(1, _AT_ONCE // width)
    return [text for at in range(0, count, rows) for text in _rows(vectors[at : at + rows])]


def _rows(vectors: npt.NDArray[np.float32]) -> list[bytes]:
    text = _format(np.ascontiguousarray(vectors, np.float32).reshape(-1)).view(np.uint8).reshape(len(vectors), -1)
    text[:, 0] = ord("[")  # instead of the comma before the first number
    return [row.tobytes() + b"]" for row in text]


def _format(numbers: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    digits, place = _nine_digits(numbers)
    # numpy turns division by a constant into multiplication; its divmod divides.
    upper = digits // 10_000
    first = upper // 10_000
    text = np.empty((numbers.size, 4), np.uint32)
    text[:, 0] = _HEADS[first + (numbers.view(np.uint32) >> 31) * 10]
    text[:, 1] = _FOUR_DIGITS[upper - first * 10_000]
    text[:, 2] = _FOUR_DIGITS[digits - upper * 10_000]
    text[:, 3] = _EXPONENTS[place]
    return text


def _nine_digits(numbers: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.intp]]:
    """Nine digits as a whole number (0 for zero), and the table index of the first digit's power of ten."""
    field = (numbers.view(np.uint32) >> 23) & 0xFF
    magnitude = np.abs(numbers).astype(np.float64)
    place = _POWERS[field].astype(np.intp)
    small = field == 0
    if small.any():
        # Numbers below 2^-126 share one field, and zero has no power at all.
        place[small] = np.floor(np.log10(np.where(magnitude == 0, 1.0, magnitude)[small]))
    place -= _LOWEST
    scaled = magnitude * _SCALES[place]
    digits = np.rint(scaled)
    # The numbers of one field span a factor of two, so a power of ten may lie between them.
    above = digits >= _TEN_DIGITS
    place += above
    np.rint(scaled / 10, out=digits, where=above)
    return digits.astype(np.uint32), place
