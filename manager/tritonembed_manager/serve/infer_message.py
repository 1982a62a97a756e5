"""An encoded ModelInferRequest, read and extended without decoding it: only its `timeout` matters here.

Protocol buffers let a field be appended to an encoded message, and of two entries with one key in a map the last one
counts. So the time that is left goes to Triton in a few bytes at the end, whatever the request holds before them.
"""

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_ID = 3
_PARAMETERS = 4
_KEY, _VALUE = 1, 2
_INT64 = 2
_ENTRY = b"\x0a\x07timeout"
"""What an entry of the map begins with: field 1 (key), 7 bytes."""
_PLACE = bytes([_PARAMETERS << 3 | _BYTES])
_VALUE_TAG = bytes([_VALUE << 3 | _BYTES])
_INT64_TAG = bytes([_INT64 << 3 | _VARINT])
MICROSECONDS = 1_000_000
_LONGEST_US = 2**62


class WrongMessage(ValueError):
    """The bytes are not an encoded message."""


def varint(number: int) -> bytes:
    """A number from 0 on, as protocol buffers encode it."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def with_timeout(message: bytes, seconds: float) -> bytes:
    """The message with KServe's parameter `timeout` set to so much (at least a microsecond)."""
    value = _INT64_TAG + varint(min(max(int(seconds * MICROSECONDS), 1), _LONGEST_US))
    entry = _ENTRY + _VALUE_TAG + bytes([len(value)]) + value
    return b"".join((message, _PLACE, bytes([len(entry)]), entry))


def asks_for_timeout(message: bytes) -> bool:
    """Whether it may hold a `timeout` parameter: True also when a text happens to hold the same bytes. Cheap."""
    return message.find(b"\x07timeout") >= 0


def read_timeout(message: bytes) -> float | None:
    """KServe's `timeout` in seconds, None where there is none above 0. Raises WrongMessage for anything unreadable.

    A value that is not an int64 raises LookupError: Triton has its own answer to it.
    """
    found: float | None = None
    for number, value in _fields(message):
        if number != _PARAMETERS or not isinstance(value, memoryview):
            continue
        entry = dict(_fields(value))
        key = entry.get(_KEY)
        if not isinstance(key, memoryview) or bytes(key) != b"timeout":
            continue
        choice = entry.get(_VALUE)
        parameter = dict(_fields(choice)) if isinstance(choice, memoryview) else {}
        microseconds = parameter.get(_INT64)
        if not isinstance(microseconds, int) or len(parameter) != 1:
            raise LookupError("the timeout is not an int64")
        # A negative int64 is sent as its two's complement.
        found = microseconds / MICROSECONDS if 0 < microseconds < 2**63 else None
    return found


def read_id(message: bytes) -> bytes:
    """The request's id, empty where there is none. Raises WrongMessage."""
    found = b""
    for number, value in _fields(message):
        if number == _ID and isinstance(value, memoryview):
            found = bytes(value)
    return found


def field(number: int, content: bytes) -> bytes:
    """A field that holds bytes, text or a message."""
    return b"".join((varint(number << 3 | _BYTES), varint(len(content)), content))


def _fields(message: bytes | memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of every field: an int, or the bytes of text, message or fixed-size number."""
    view = memoryview(message)
    size, at = len(view), 0
    while at < size:
        tag, at = _read_varint(view, at)
        kind = tag & 7
        if kind == _VARINT:
            number, at = _read_varint(view, at)
            yield tag >> 3, number
            continue
        if kind == _BYTES:
            length, at = _read_varint(view, at)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise WrongMessage("a field of a kind that does not exist")
        if at + length > size:
            raise WrongMessage("a field goes past the end")
        yield tag >> 3, view[at : at + length]
        at += length


def _read_varint(view: memoryview, at: int) -> tuple[int, int]:
    number = shift = 0
    while at < len(view) and shift < 64 + 6:
        byte = view[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
    raise WrongMessage("a number goes past the end")
