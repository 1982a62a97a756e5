"""Tensors as JSON: the `data` of KServe's inputs and outputs, and vectors as numbers.

`json.dumps` takes half a microsecond per number, and a request of 64 sentences has 49,152 numbers. In `json_rows` every
number is a row of 16 bytes, such as ",-1.23456789e-02" (with a space if there is no minus). A row has four parts of
four bytes, which are looked up in tables, column by column for a whole matrix. Nine significant digits restore every
float32 exactly.

KServe's vectors are BYTES, and clients that know no bytes ask for numbers, which are made here: with the parameter
`as: "FP32"`, of the request or of its output `embedding`, or with an output `embedding_fp32`. The answer's tensor is
FP32 [texts, dimensions], in JSON or in binary. litellm's `triton/` provider is such a client. It sends KServe's JSON
with its own names, for an ensemble that this server does not have: one input `input_text` of shape [texts]. It takes
every output of the answer for vectors.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.utils import triton_to_np_dtype

from tritonembed import ServerError
from tritonembed.inputs import encode_texts
from tritonembed_manager.router.apis.http.errors import BadRequest
from tritonembed_protocol.framing import HEADER, FramingError, frame, unframe_vectors
from tritonembed_protocol.types import DEFAULT_OUTPUT_TYPE

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
"""For each exponent field of float32 above 0, the power of ten of the smallest number that has it."""
_LOWEST, _HIGHEST = -45, 38
_SCALES = np.array([10.0 ** (8 - power) for power in range(_LOWEST, _HIGHEST + 1)])
"""For each power of ten from the lowest on, the factor that brings nine digits before the point."""
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
        # Numbers below 2^-126 share one field, and zero has no power of ten.
        place[small] = np.floor(np.log10(np.where(magnitude == 0, 1.0, magnitude)[small]))
    place -= _LOWEST
    scaled = magnitude * _SCALES[place]
    digits = np.rint(scaled)
    # The numbers of one field span a factor of two, so a power of ten may lie between them.
    above = digits >= _TEN_DIGITS
    place += above
    np.rint(scaled / 10, out=digits, where=above)
    return digits.astype(np.uint32), place


OUTPUT = "embedding"
AS_NUMBERS = f"{OUTPUT}_fp32"
"""The output that has no other form."""
PARAMETER = "as"
DATATYPE = "FP32"
_WITHOUT = ("tokenizer", "chunks")
"""Ends of the names of models without this output."""


@dataclass(frozen=True)
class Numbers:
    """names: of the outputs that are sent as numbers. also_bytes: whether `embedding` is sent as BYTES, too."""

    names: tuple[str, ...] = ()
    also_bytes: bool = True


NO_NUMBERS = Numbers()


def read_numbers(asked: dict[str, dict[str, Any]], parameters: dict[str, Any], model: str) -> Numbers:
    """What a request asks for. Takes the parameter `as` out of both.

    asked: the parameters of each output that the request names. parameters: of the request. Raises BadRequest.
    """
    by_default = _read_parameter(parameters, "parameters")
    names = []
    for name, own in asked.items():
        chosen = _read_parameter(own, f"output {name}")
        if chosen and name not in (OUTPUT, AS_NUMBERS):
            raise BadRequest(f"output {name}: {PARAMETER} is for the output {OUTPUT}")
        if name == AS_NUMBERS or (name == OUTPUT and (chosen or by_default)):
            names.append(name)
    if by_default and not asked:
        names.append(OUTPUT)
    if names and model.endswith(_WITHOUT):
        raise BadRequest(f"{PARAMETER}: this model has no output {OUTPUT}")
    if names and parameters.get("embedding_type", DEFAULT_OUTPUT_TYPE) != DEFAULT_OUTPUT_TYPE:
        raise BadRequest(f"{PARAMETER}: {DATATYPE} is for embedding_type {DEFAULT_OUTPUT_TYPE}")
    return Numbers(tuple(names), OUTPUT in asked and OUTPUT not in names)


def matrix(content: bytes, count: int) -> npt.NDArray[np.float32]:
    """The vectors of a BYTES tensor of `count` elements: float32 [count, dimensions]. Raises ServerError."""
    try:
        return unframe_vectors(content, count, np.dtype("<f4"))
    except (FramingError, ZeroDivisionError):
        raise ServerError(f"output {OUTPUT}: its bytes are not float32 vectors") from None


def as_flat_json(vectors: npt.NDArray[np.float32]) -> Iterator[bytes]:
    """The numbers of all rows, in order, as pieces of a JSON list. Raises ServerError for a number that JSON lacks."""
    if not np.isfinite(vectors).all():
        raise ServerError(
            f"output {OUTPUT}: a number that is not finite cannot be written as JSON; ask for binary data"
        )
    for index, row in enumerate(json_rows(vectors)):
        yield (b"," if index else b"") + row[1:-1]


def _read_parameter(parameters: dict[str, Any], what: str) -> bool:
    given = parameters.pop(PARAMETER, None)
    if given not in (None, DATATYPE):
        raise BadRequest(f"{what}: {PARAMETER} must be {DATATYPE}")
    return given is not None


LITELLM_ROUTE = "/triton/embeddings"


def litellm_to_kserve(body: dict[str, Any]) -> dict[str, Any]:
    """A litellm request as KServe's for the ensemble, with vectors as numbers. Raises BadRequest."""
    inputs = body.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise BadRequest("inputs must be a list of one input, input_text")
    [given] = inputs
    data = given.get("data")
    if isinstance(data, str):
        # litellm sends a single text as it is.
        data = [data]
    if given.get("datatype") != "BYTES" or not isinstance(data, list):
        raise BadRequest("input input_text: it must have the datatype BYTES and a list of texts as its data")
    tensor = {"name": "text", "datatype": "BYTES", "shape": [len(data), 1], "data": data}
    return {**body, "inputs": [tensor], "outputs": [{"name": OUTPUT, "parameters": {PARAMETER: DATATYPE}}]}
