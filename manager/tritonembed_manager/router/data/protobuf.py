"""Reads and extends protocol buffer messages without decoding them: single fields, and a request's `timeout`.

A field may be appended to an encoded message. If two map entries have the same key, the last counts. So the time left
is sent to Triton in a few bytes at the end, whatever the request holds before them.
"""

from collections.abc import Iterator

VARINT, _FIXED64, BYTES, _FIXED32 = 0, 1, 2, 5
"""Kinds of fields (protobuf.dev/programming-guides/encoding). Groups (3 and 4) are refused: no client sends them."""
_PARAMETERS = 4
_KEY, _VALUE = 1, 2
_INT64, _STRING = 2, 3
_TEXT = (_STRING, BYTES)
_ENTRY = b"\x0a\x07timeout"
"""First bytes of the map entry: field 1 (key), 7 bytes."""
_PLACE = bytes([_PARAMETERS << 3 | BYTES])
_VALUE_TAG = bytes([_VALUE << 3 | BYTES])
_INT64_TAG = bytes([_INT64 << 3 | VARINT])
MICROSECONDS = 1_000_000
_LONGEST_US = 2**62
_MOST_VARINT_BYTES = 10
_64_BITS = (1 << 64) - 1


class WrongMessage(ValueError):
    """The bytes are not an encoded message."""


def varint(number: int) -> bytes:
    """A number of at least 0 in protocol buffers' encoding."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def with_timeout(message: bytes, seconds: float, more: bytes = b"") -> bytes:
    """The message with KServe's parameter `timeout` set to `seconds` (at least a microsecond). more: encoded fields."""
    value = _INT64_TAG + varint(min(max(int(seconds * MICROSECONDS), 1), _LONGEST_US))
    entry = _ENTRY + _VALUE_TAG + bytes([len(value)]) + value
    return b"".join((message, _PLACE, bytes([len(entry)]), entry, more))


def field(number: int, content: bytes) -> bytes:
    """An encoded field that holds bytes, text or a message."""
    return b"".join((varint(number << 3 | BYTES), varint(len(content)), content))


def parameter(key: str, text: str) -> bytes:
    """A text parameter to append to a ModelInferRequest or ModelInferResponse. The last of a key counts."""
    value = field(_STRING, text.encode())
    return field(_PARAMETERS, field(_KEY, key.encode()) + field(_VALUE, value))


def text_parameter(message: bytes, key: str) -> str:
    """A text parameter of an encoded ModelInferRequest; empty if it has none, or if the bytes are no such request."""
    wanted, found = key.encode(), b""
    if wanted not in message:
        return ""
    try:
        fields = Fields(message)
        for number, kind, _, at, end in fields.within(0, len(message)):
            if number == _PARAMETERS and kind == BYTES:
                name, value = b"", b""
                for of, form, _, start, stop in fields.within(at, end):
                    if of == _KEY and form == BYTES:
                        name = message[start:stop]
                    elif of == _VALUE and form == BYTES:
                        texts = [message[a:b] for no, f, _, a, b in fields.within(start, stop) if (no, f) == _TEXT]
                        value = texts[-1] if texts else b""
                found = value if name == wanted else found
        return found.decode()
    except ValueError:
        return ""


def read_varint(message: bytes, at: int) -> tuple[int, int]:
    """The number (64 bits) that begins at index `at`, and the index at which it ends. Raises WrongMessage."""
    number = shift = 0
    for byte in message[at : at + _MOST_VARINT_BYTES]:
        number |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return number & _64_BITS, at
        shift += 7
    raise WrongMessage("a number goes past the end")


MOST_FIELDS = 4096
"""Fields of one request, including the fields of messages in it. Each takes a microsecond of the event loop."""


class RefusedMessage(ValueError):
    """The request can't be answered; the message is one line for its sender. supported: False if this endpoint never
    supports such requests."""

    def __init__(self, message: str, *, supported: bool = True) -> None:
        super().__init__(message)
        self.supported = supported


class Fields:
    """Fields of one request. Their number is limited, so that no message keeps the event loop busy for long."""

    __slots__ = ("_left", "_message")

    def __init__(self, message: bytes) -> None:
        self._message = message
        self._left = MOST_FIELDS

    def within(self, at: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
        """Yields (number, kind, start of the field, start of its content, end); a varint's value replaces its start.

        Raises WrongMessage, and Refused if there are too many fields.
        """
        message = self._message
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise RefusedMessage(f"the request has more than {MOST_FIELDS} fields: use raw_input_contents")
            begin = at
            tag = message[at]
            at += 1
            if tag > 0x7F:
                tag, at = read_varint(message, begin)
            kind = tag & 7
            number = tag >> 3
            if not 0 < number < 1 << 29:
                raise WrongMessage("a field without a number")
            if kind == BYTES:
                if at >= end:
                    raise WrongMessage("a field goes past the end")
                size = message[at]
                at += 1
                if size > 0x7F:
                    size, at = read_varint(message, at - 1)
                stop = at + size
                if stop > end:
                    raise WrongMessage("a field goes past the end")
                yield number, kind, begin, at, stop
                at = stop
            elif kind == VARINT:
                value, at = read_varint(message, at)
                if at > end:
                    raise WrongMessage("a field goes past the end")
                yield number, kind, begin, value, at
            elif kind in (_FIXED64, _FIXED32):
                stop = at + (8 if kind == _FIXED64 else 4)
                if stop > end:
                    raise WrongMessage("a field goes past the end")
                yield number, kind, begin, at, stop
                at = stop
            else:
                raise WrongMessage("a field of a kind that does not exist")
