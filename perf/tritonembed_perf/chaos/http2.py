"""The part of HTTP/2 that attackers need: any frames, right or wrong, and the status of an answer."""

import asyncio
from collections.abc import Iterable

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS = 1, 1, 4
_WINDOW = 65_535
INFER = "/inference.GRPCInferenceService/ModelInfer"
_CODES = (
    "OK CANCELLED UNKNOWN INVALID_ARGUMENT DEADLINE_EXCEEDED NOT_FOUND ALREADY_EXISTS PERMISSION_DENIED "
    "RESOURCE_EXHAUSTED FAILED_PRECONDITION ABORTED OUT_OF_RANGE UNIMPLEMENTED INTERNAL UNAVAILABLE DATA_LOSS "
    "UNAUTHENTICATED"
)
CODES = _CODES.split()
_STATUS = b"\x0bgrpc-status"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """An HTTP/2 frame (RFC 9113, section 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def block(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A block of header fields, each literal and not indexed (HPACK). The fields may hold any bytes."""
    return b"".join(b"\0" + _string(name) + _string(value) for name, value in fields)


def grpc_fields(path: str = INFER, more: Iterable[tuple[bytes, bytes]] = ()) -> list[tuple[bytes, bytes]]:
    """The header fields of a gRPC call."""
    return [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path.encode()),
        (b":authority", b"127.0.0.1"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        *more,
    ]


def opening() -> bytes:
    """A client's connection preface and its SETTINGS."""
    return PREFACE + frame(SETTINGS, 0, 0)


def call(message: bytes, more: Iterable[tuple[bytes, bytes]] = (), stream: int = 1) -> bytes:
    """A whole unary call. The message has to fit in one DATA frame."""
    head = frame(HEADERS, END_HEADERS, stream, block(grpc_fields(more=more)))
    return head + frame(DATA, END_STREAM, stream, grpc_frame(message))


def grpc_frame(message: bytes, flag: int = 0, length: int | None = None) -> bytes:
    """gRPC's length-prefixed message. length: the announced one; by default the real one."""
    return bytes((flag,)) + (len(message) if length is None else length).to_bytes(4, "big") + message


async def read_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float) -> str:
    """The name of the gRPC status; `closed` after a reset or a GOAWAY; `silent` if no status arrives in time."""
    try:
        return await asyncio.wait_for(_answer(reader, writer), seconds)
    except (asyncio.TimeoutError, TimeoutError):
        return "silent"
    except (OSError, asyncio.IncompleteReadError):
        return "closed"


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    while True:
        head = await reader.readexactly(9)
        payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
        kind, flags = head[3], head[4]
        if kind == SETTINGS and not flags & ACK:
            writer.write(frame(SETTINGS, ACK, 0))
        elif kind in (RST_STREAM, GOAWAY):
            return "closed"
        elif kind == HEADERS and (at := payload.find(_STATUS)) >= 0:
            return _code(payload[at + len(_STATUS) :])
        elif kind == HEADERS and flags & END_STREAM:
            return "closed"


def _code(rest: bytes) -> str:
    digits = rest[1 : 1 + rest[0]]
    return CODES[int(digits)] if digits.isdigit() and int(digits) < len(CODES) else "?"


def _string(text: bytes) -> bytes:
    if len(text) < 127:
        return bytes((len(text),)) + text
    # HPACK's integers (RFC 7541, section 5.1): seven bits of the first byte, then seven bits per byte.
    rest, encoded = len(text) - 127, bytearray((127,))
    while rest >= 128:
        encoded.append(rest % 128 + 128)
        rest //= 128
    return bytes((*encoded, rest)) + text
