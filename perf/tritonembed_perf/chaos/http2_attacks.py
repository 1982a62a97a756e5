"""Attacks below gRPC: metadata that can't be forwarded, messages that never end, frames that break HTTP/2.

The part of HTTP/2 that they need is here, too: any frames, right or wrong, and the status of an answer.
"""

import asyncio
import base64
import random
from collections.abc import Iterable

from tritonembed_perf.chaos.attack import (
    ANYTHING_BUT_A_FAULT,
    CANARY,
    HUNG_UP,
    NAMED_WRONG,
    TOO_MUCH,
    Attack,
    AttackTarget,
)
from tritonembed_perf.chaos.messages import good_message
from tritonembed_perf.chaos.socket_attacks import connected

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


_PATIENCE_S = 8.0
_MIB = 1 << 20
_HEADERS_END = END_HEADERS


async def _send(target: AttackTarget, sent: bytes, seconds: float = _PATIENCE_S) -> tuple[str, str]:
    try:
        async with connected(target, target.grpc_port) as (reader, writer):
            writer.write(opening() + sent)
            await writer.drain()
            return await read_answer(reader, writer, seconds), ""
    except OSError:
        return "closed", ""


async def metadata(target: AttackTarget, rng: random.Random) -> tuple[str, str]:
    """Names and values of metadata that gRPC for Python does not forward."""
    more = rng.choice(
        (
            (b"x-value", b"caf\xe9"),
            (b"x-value", b"\x01" + CANARY.encode()),
            (b"x-value", b"a\r\nb: c"),
            (b"x-value", b"a\0b"),
            (b"X-Upper", b"value"),
            (b"x name", b"value"),
            (b"x-\xe9", b"value"),
            (b"", b"value"),
            (b"x-data-bin", b"not base64!"),
            (b"x-data-bin", base64.b64encode(rng.randbytes(200))),
            (b"grpc-timeout", b"12345678901S"),
            (b"grpc-timeout", b"-1S"),
            (b"grpc-trace-bin", b"AA"),
            (b"x-large", b"v" * 6000),
            (b"connection", b"close"),
        )
    )
    return await _send(target, call(good_message().SerializeToString(), [more]))


async def many_metadata(target: AttackTarget, rng: random.Random) -> tuple[str, str]:
    """Many calls on one connection, each with metadata that can't be forwarded."""
    message = good_message().SerializeToString()
    count = rng.choice((10, 60))
    calls = [call(message, [(b"x-value", b"caf\xe9")], 2 * number + 1) for number in range(count)]
    return await _send(target, b"".join(calls))


async def message_without_end(target: AttackTarget, rng: random.Random) -> tuple[str, str]:
    """Part of a message; then the connection is silent until it is reset."""
    size = rng.choice((100_000, _MIB, 60 * _MIB))
    head = frame(HEADERS, _HEADERS_END, 1, block(grpc_fields()))
    # Less than a flow-control window: more would have to wait for WINDOW_UPDATE.
    part = grpc_frame(b"x" * rng.choice((0, 1000, 16_000)), length=size)
    return await _send(target, head + frame(DATA, 0, 1, part), rng.uniform(1, 5))


async def wrong_grpc_frame(target: AttackTarget, rng: random.Random) -> tuple[str, str]:
    """gRPC's message prefix with unknown flags or wrong lengths, and noise marked as compressed."""
    message = good_message().SerializeToString()
    head = frame(HEADERS, _HEADERS_END, 1, block(grpc_fields()))
    packed = block(grpc_fields(more=[(b"grpc-encoding", rng.choice((b"gzip", b"deflate", b"zip")))]))
    data = rng.choice(
        (
            grpc_frame(message, flag=1),
            grpc_frame(message, flag=7),
            grpc_frame(message, length=2**32 - 1),
            grpc_frame(message, length=len(message) + 5),
            grpc_frame(message, length=3),
            b"\0\0",
            b"",
        )
    )
    if rng.random() < 0.3:
        head = frame(HEADERS, _HEADERS_END, 1, packed)
        data = grpc_frame(rng.randbytes(300), flag=1)
    return await _send(target, head + frame(DATA, END_STREAM, 1, data))


async def wrong_head(target: AttackTarget, rng: random.Random) -> tuple[str, str]:
    """Header fields that no gRPC call has."""
    good = dict(grpc_fields())
    name, value = rng.choice(
        (
            (b":method", b"GET"),
            (b":path", b"no slash"),
            (b":path", b"/"),
            (b":path", b"/" + b"x" * 7000),
            (b"content-type", b"text/plain"),
            (b"content-type", b"application/grpc+json"),
            (b"te", b"gzip"),
            (b":scheme", b"\xff"),
            (b":status", b"200"),
        )
    )
    fields = list({**good, name: value}.items())
    head = frame(HEADERS, _HEADERS_END | END_STREAM, 1, block(fields))
    return await _send(target, head, 5)


async def broken_frames(target: AttackTarget, rng: random.Random) -> tuple[str, str]:
    """Frames that HTTP/2 forbids, and floods of frames that it allows."""
    head = frame(HEADERS, 0, 1, block(grpc_fields()))
    sent = rng.choice(
        (
            frame(DATA, 0, 0, b"hello"),
            frame(SETTINGS, 0, 0, b"123"),
            frame(SETTINGS, 0, 0, b"\0\4\xff\xff\xff\xff"),
            frame(WINDOW_UPDATE, 0, 0, bytes(4)),
            frame(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff") * 3,
            frame(HEADERS, _HEADERS_END, 2, b"\xff" * 50),
            frame(HEADERS, _HEADERS_END, 1, rng.randbytes(100)),
            frame(PUSH, _HEADERS_END, 1, bytes(4)),
            frame(200, 255, 1, rng.randbytes(100)),
            b"\xff\xff\xff" + rng.randbytes(200),
            frame(PING, 0, 0, bytes(8)) * 2000,
            frame(SETTINGS, 0, 0) * 2000,
            head + frame(CONTINUATION, 0, 1, block([(b"x", b"y" * 100)])) * 1000,
        )
    )
    return await _send(target, sent, 3)


async def resets(target: AttackTarget, rng: random.Random) -> tuple[str, str]:
    """Many streams, each of which is opened and reset at once."""
    message = good_message((b"a text",) * 8).SerializeToString()
    cancel = (8).to_bytes(4, "big")
    opened = [
        call(message, stream=stream) + frame(RST_STREAM, 0, stream, cancel)
        for stream in range(1, 2 * rng.choice((20, 90)), 2)
    ]
    return await _send(target, b"".join(opened), 1)


async def half_open(target: AttackTarget, rng: random.Random) -> tuple[str, str]:
    """A call whose client reads nothing and resets the connection before the answer."""
    try:
        async with connected(target, target.grpc_port) as (_, writer):
            message = good_message((b"a text",) * 64).SerializeToString()
            writer.write(opening() + call(message))
            await writer.drain()
            await asyncio.sleep(rng.uniform(0, 0.1))
    except OSError:
        pass
    return "closed", ""


def http2_attacks() -> list[Attack]:
    # gRPC's own library answers INTERNAL to invalid names and to wrong message prefixes, before the manager gets a
    # request.
    by_grpc = frozenset({"INTERNAL", "UNKNOWN", "CANCELLED"})
    called = ANYTHING_BUT_A_FAULT - {"silent"}
    return [
        Attack("HTTP/2: metadata", metadata, called | by_grpc, 2.0),
        Attack("HTTP/2: metadata on many calls", many_metadata, called, 0.5),
        Attack("HTTP/2: a message without end", message_without_end, HUNG_UP | TOO_MUCH),
        Attack("HTTP/2: gRPC's frame", wrong_grpc_frame, ANYTHING_BUT_A_FAULT | by_grpc),
        Attack("HTTP/2: a wrong head", wrong_head, NAMED_WRONG | HUNG_UP | by_grpc),
        # gRPC may end a call with UNAVAILABLE if it closes the connection.
        Attack("HTTP/2: broken frames", broken_frames, HUNG_UP | by_grpc | {"UNAVAILABLE"}),
        Attack("HTTP/2: resets", resets, ANYTHING_BUT_A_FAULT),
        Attack("HTTP/2: callers that vanish", half_open, HUNG_UP),
    ]
