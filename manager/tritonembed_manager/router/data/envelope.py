"""The envelope of an encoded ModelInferRequest: everything but the tensors' elements, read without decoding them.

Triton checks some parts of a request only after it has formed a batch. A bad request then makes the others of its batch
fail, or kills the server. So a request is forwarded only if `read_envelope` accepts it. The messages are those of
Triton's grpc_service.proto (KServe v2). If a field occurs twice, the last counts, as in all protocol buffers.
"""

from dataclasses import dataclass, field
from math import prod
from struct import Struct
from struct import error as StructError

import numpy as np

from tritonembed_manager.router.data.protobuf import (
    BYTES,
    MICROSECONDS,
    VARINT,
    Fields,
    RefusedMessage,
    WrongMessage,
    read_varint,
)
from tritonembed_manager.router.data.window import MOST_PER_ROW
from tritonembed_protocol.space import SPACE
from tritonembed_protocol.types import CACHE_SALT

MOST_ELEMENTS = 65_536
"""Elements of all BYTES tensors of a request. Checking an element takes a tenth of a microsecond."""
_SIZES = {
    **dict.fromkeys((b"BOOL", b"UINT8", b"INT8"), 1),
    **dict.fromkeys((b"UINT16", b"INT16", b"FP16", b"BF16"), 2),
    **dict.fromkeys((b"UINT32", b"INT32", b"FP32"), 4),
    **dict.fromkeys((b"UINT64", b"INT64", b"FP64"), 8),
}
"""Bytes per element, by datatype. In a BYTES tensor, each element has its size before it."""
_VERSION, _ID, _PARAMETERS, _INPUTS, _OUTPUTS, _RAW = 2, 3, 4, 5, 6, 7
_NAME = _KEY = 1
_DATATYPE, _SHAPE, _INPUT_PARAMETERS, _CONTENTS = 2, 3, 4, 5
_VALUE, _OUTPUT_PARAMETERS = 2, 2
_BYTES_CONTENTS = 8
_SIZES_OF_CONTENTS = {6: 4, 7: 8}
"""Bytes per number in fp32_contents and fp64_contents; the five fields before them hold varints."""
_LONGEST_VARINT = 10
"""Bytes. The last byte is below 0x80, the others are not."""
_AT_ONCE = 1 << 18
_INT64, _STRING, _UINT64 = 2, 3, 5
_SPACE = SPACE.encode()
_CACHE_SALT = CACHE_SALT.encode()
_CHUNKS = b"embedding_chunks"
"""The model that returns vectors of chunks."""
LONGEST_NAME, LONGEST_ID = 255, 1024
"""Bytes. Triton repeats names and ids in its errors, which must fit into gRPC's metadata."""
_LONGEST_SHOWN = 64
_MOST_SIZES = 32
NO_SHARED_MEMORY = (
    "shared memory belongs to one server, and this endpoint has several: send the tensors in the request, or connect "
    "to a Triton server directly"
)
_size_at = Struct("<I").unpack_from

Span = tuple[int, int]


@dataclass(slots=True)
class Envelope:
    """What the dispatcher needs to know about a request."""

    timeout: float | None = None
    """KServe's `timeout`, in seconds; None if it is absent or not above 0."""
    timed: bool = True
    """False if `timeout` is not an int64: Triton answers that with its own error."""
    own: list[Span] = field(default_factory=list)
    """The bytes of the id and the timeout: only they differ between requests that ask for the same."""
    rows: int = 0
    """Elements of its longest BYTES input: pairs are a query and a text each."""
    cut: int = 0
    """Bytes of these elements that no model reads, because each is cut off at the longest text; see window.py."""
    chunked: bool = False
    """Whether texts are embedded in chunks, and not cut off."""
    priority: int = 2
    """KServe's `priority`: 1 goes ahead of 2, the default; all other values count as 2."""
    model: bytes = b""
    version: bytes = b""
    space: str = ""
    """The requested embedding space; empty for any."""
    cache_salt: str = ""
    """The client's own; see `cache_salt` in tenants.py."""
    adapter: str = ""
    """The requested adapter; empty for none."""


@dataclass(slots=True)
class _Input:
    name: bytes = b""
    datatype: bytes = b""
    shape: tuple[int, ...] = ()
    contents: int = -1
    """Elements in `contents` (0 for a datatype other than BYTES); -1 if the input has no `contents`."""
    cut: int = 0
    """`cut` of the envelope, for the elements in `contents`."""


def read_envelope(message: bytes) -> Envelope:
    """The envelope of an encoded ModelInferRequest.

    Raises WrongMessage if the bytes are no ModelInferRequest, and Refused if no server may receive the request.
    """
    fields = Fields(message)
    envelope = Envelope()
    inputs: list[_Input] = []
    raw: list[Span] = []
    for number, kind, begin, at, end in fields.within(0, len(message)):
        if kind != BYTES:
            continue
        if number == _RAW:
            raw.append((at, end))
        elif number == _INPUTS:
            inputs.append(_read_input(fields, message, at, end))
        elif number == _OUTPUTS:
            _check_output(fields, message, at, end)
        elif number == _NAME:
            envelope.model = _text(message, at, end)
        elif number == _VERSION:
            envelope.version = _text(message, at, end)
        elif number == _ID:
            _text(message, at, end, LONGEST_ID)
            envelope.own.append((begin, end))
        elif number == _PARAMETERS and _read_own(fields, message, at, end, envelope):
            envelope.own.append((begin, end))
    envelope.rows, cut = _check_inputs(message, inputs, raw)
    if cut and not envelope.chunked and envelope.model != _CHUNKS:
        envelope.cut = cut
    return envelope


def work_of(message: bytes) -> int:
    """The work of an encoded ModelInferRequest, in bytes; see window.py."""
    if len(message) <= MOST_PER_ROW:
        return len(message)
    try:
        return len(message) - read_envelope(message).cut
    except ValueError:
        # The request will be refused.
        return len(message)


def read_id(message: bytes) -> bytes:
    """The id of an encoded ModelInferRequest; empty if it has no id, or an id that an answer can't repeat."""
    found = b""
    try:
        for number, kind, _, at, end in Fields(message).within(0, len(message)):
            if number == _ID and kind == BYTES:
                found = _text(message, at, end, LONGEST_ID)
    except ValueError:
        return b""
    return found


def _read_own(fields: Fields, message: bytes, at: int, end: int, envelope: Envelope) -> bool:
    """Write a parameter that the dispatcher needs into the envelope. Returns whether it is the timeout."""
    key, numbers, text = _read_parameter(fields, message, at, end)
    if key == _SPACE:
        if not text:
            raise RefusedMessage(f"{SPACE}: must be a string that is not empty")
        envelope.space = text.decode()
    if key == _CACHE_SALT:
        envelope.cache_salt = text.decode()
    if key == b"adapter":
        envelope.adapter = text.decode()
    if key == b"truncate":
        envelope.chunked = text == b"CHUNK"
    if key == b"priority":
        first = numbers.get(_INT64) == 1 or numbers.get(_UINT64) == 1
        envelope.priority = 1 if first else 2
    if key != b"timeout":
        return False
    envelope.timeout, envelope.timed = None, True
    if set(numbers) != {_INT64}:
        envelope.timed = False
    elif 0 < numbers[_INT64] < 1 << 63:
        # A negative int64 is sent as its two's complement.
        envelope.timeout = numbers[_INT64] / MICROSECONDS
    return True


def _read_parameter(fields: Fields, message: bytes, at: int, end: int) -> tuple[bytes, dict[int, int], bytes]:
    """The key of a parameter; if its value is a number, the value by its field number; and its text, if it has one.

    The value is read completely, because Triton answers a malformed value with a different error.
    """
    key = b""
    numbers: dict[int, int] = {}
    text = b""
    for number, kind, _, start, stop in fields.within(at, end):
        if kind == BYTES and number == _KEY:
            key = _text(message, start, stop)
        elif kind == BYTES and number == _VALUE:
            numbers, text = {}, b""
            for of, form, _, content, content_end in fields.within(start, stop):
                if form == VARINT:
                    numbers[of], text = content, b""
                elif form == BYTES and of == _STRING:
                    text = _text(message, content, content_end, content_end - content)
    return key, numbers, text


def _read_input(fields: Fields, message: bytes, at: int, end: int) -> _Input:
    found = _Input()
    shape: list[int] = []
    for number, kind, _, start, stop in fields.within(at, end):
        if kind == VARINT:
            if number == _SHAPE:
                shape.append(start)
        elif kind != BYTES:
            continue
        elif number == _NAME:
            found.name = _text(message, start, stop)
        elif number == _DATATYPE:
            found.datatype = _text(message, start, stop)
        elif number == _SHAPE:
            while start < stop and len(shape) <= _MOST_SIZES:
                size, start = read_varint(message, start)
                shape.append(size)
            if start > stop:
                raise WrongMessage("a size goes past the end of its shape")
        elif number == _INPUT_PARAMETERS:
            _refuse_shared_memory(fields, message, start, stop)
        elif number == _CONTENTS:
            elements, cut = _count_contents(fields, message, start, stop)
            found.contents = max(found.contents, 0) + elements
            found.cut += cut
    if len(shape) > _MOST_SIZES:
        raise RefusedMessage(f"input {_shown(found.name)}: its shape has more than {_MOST_SIZES} sizes")
    found.shape = tuple(shape)
    return found


def _count_contents(fields: Fields, message: bytes, at: int, end: int) -> tuple[int, int]:
    """The number of BYTES elements in an input's contents, and the bytes of them that no model reads.

    Raises WrongMessage if numbers in them are malformed.
    """
    elements = cut = 0
    for number, kind, _, start, stop in fields.within(at, end):
        if kind != BYTES:
            continue
        if number == _BYTES_CONTENTS:
            elements += 1
            cut += max(stop - start - MOST_PER_ROW, 0)
        elif number in _SIZES_OF_CONTENTS:
            if (stop - start) % _SIZES_OF_CONTENTS[number]:
                raise WrongMessage("contents end within a number")
        elif number < _BYTES_CONTENTS and not _are_varints(message, start, stop):
            raise WrongMessage("contents end within a number")
    return elements, cut


def _are_varints(message: bytes, at: int, end: int) -> bool:
    """Whether varints fill the span exactly. A span of 62 MiB takes tens of milliseconds: a regular expression takes
    seconds of the event loop."""
    if at < end and message[end - 1] > 0x7F:
        return False
    for first in range(at, end, _AT_ONCE):
        continues = np.frombuffer(message, np.int8, min(_AT_ONCE + _LONGEST_VARINT - 1, end - first), first) < 0
        two = continues[1:] & continues[:-1]
        four = two[2:] & two[:-2]
        eight = four[4:] & four[:-4]
        if (eight[:-2] & two[8:]).any():
            return False
    return True


def _check_output(fields: Fields, message: bytes, at: int, end: int) -> None:
    for number, kind, _, start, stop in fields.within(at, end):
        if number == _NAME and kind == BYTES:
            _text(message, start, stop)
        elif number == _OUTPUT_PARAMETERS and kind == BYTES:
            key = _refuse_shared_memory(fields, message, start, stop)
            if key == b"classification":
                # This kills Triton 2.51, which divides by the number of an output's elements.
                raise RefusedMessage("an output has the parameter classification: a vector has no classes")


def _refuse_shared_memory(fields: Fields, message: bytes, at: int, end: int) -> bytes:
    """The key of a tensor's parameter. Raises Refused if it is about shared memory, which belongs to one server."""
    key, _, _ = _read_parameter(fields, message, at, end)
    if key.startswith(b"shared_memory_"):
        raise RefusedMessage(NO_SHARED_MEMORY, supported=False)
    return key


def _check_inputs(message: bytes, inputs: list[_Input], raw: list[Span]) -> tuple[int, int]:
    """The elements of the longest BYTES input, and the bytes of all of them that no model reads. Raises Refused."""
    if raw and len(raw) != len(inputs):
        raise RefusedMessage(f"the request has {len(inputs)} inputs, and raw_input_contents of {len(raw)}")
    rows = elements = cut = 0
    for index, tensor in enumerate(inputs):
        expected = _elements(tensor)
        is_bytes = tensor.datatype == b"BYTES"
        if is_bytes:
            rows, elements = max(rows, expected), elements + expected
            if elements > MOST_ELEMENTS:
                raise RefusedMessage(f"input {_shown(tensor.name)}: more than {MOST_ELEMENTS} elements in one request")
        if not raw:
            if tensor.contents < 0:
                raise RefusedMessage(f"input {_shown(tensor.name)}: it has no content")
            if is_bytes and tensor.contents != expected:
                raise RefusedMessage(
                    f"input {_shown(tensor.name)}: its contents have {tensor.contents} elements, its shape {expected}"
                )
            cut += tensor.cut
            continue
        if tensor.contents >= 0:
            raise RefusedMessage(f"input {_shown(tensor.name)}: it has contents and raw_input_contents")
        start, end = raw[index]
        if is_bytes:
            if not _is_framed(message, start, end, expected):
                raise RefusedMessage(
                    f"input {_shown(tensor.name)}: its raw content is not {expected} elements, each after its size "
                    "in 4 bytes"
                )
            if end - start > MOST_PER_ROW:
                cut += _cut(message, start, expected)
        elif (size := _SIZES.get(tensor.datatype)) is not None and end - start != size * expected:
            raise RefusedMessage(
                f"input {_shown(tensor.name)}: its raw content has {end - start} bytes, its shape and datatype "
                f"{size * expected}"
            )
    return rows, cut


def _elements(tensor: _Input) -> int:
    """The number of elements in the shape. Raises Refused if it is 0, or a size is negative (2^63 or more here)."""
    if any(size >= 1 << 63 for size in tensor.shape):
        raise RefusedMessage(f"input {_shown(tensor.name)}: a size of its shape is negative")
    count = prod(tensor.shape)
    if not count:
        raise RefusedMessage(f"input {_shown(tensor.name)}: it is empty")
    return count


def _is_framed(message: bytes, at: int, end: int, count: int) -> bool:
    """Whether exactly `count` elements, each behind its size (uint32, little-endian), fill the content."""
    if count * 4 > end - at:
        return False
    try:
        for _ in range(count):
            at += 4 + _size_at(message, at)[0]
    except StructError:
        return False
    return at == end


def _cut(message: bytes, at: int, count: int) -> int:
    """The bytes of framed elements that no model reads."""
    cut = 0
    for _ in range(count):
        size = _size_at(message, at)[0]
        cut += max(size - MOST_PER_ROW, 0)
        at += 4 + size
    return cut


def _text(message: bytes, at: int, end: int, longest: int = LONGEST_NAME) -> bytes:
    """A text field. Raises Refused if it is too long or holds a NUL byte, and WrongMessage if it is not UTF-8."""
    if end - at > longest:
        raise RefusedMessage(f"a name in the request has {end - at} bytes; at most {longest} are allowed")
    text = message[at:end]
    if 0 in text:
        # Triton reads names as C strings, up to the first NUL: it would see a different name.
        raise RefusedMessage("a name or a parameter in the request holds a NUL byte")
    if not text.isascii():
        try:
            text.decode()
        except UnicodeDecodeError:
            raise WrongMessage("a text that is not UTF-8") from None
    return text


def _shown(name: bytes) -> str:
    """A name for an error message; "?" if it is long or not printable."""
    text = name.decode(errors="replace")
    return text if text.isprintable() and len(text) <= _LONGEST_SHOWN else "?"
