"""Attacks below gRPC: metadata that can't be forwarded, messages that never end, frames that break HTTP/2."""

import asyncio
import base64
import random

from tritonembed_perf.chaos import http2
from tritonembed_perf.chaos.attack import ANYTHING_BUT_A_FAULT, CANARY, HUNG_UP, NAMED_WRONG, TOO_MUCH, Attack, Target
from tritonembed_perf.chaos.messages import good_message
from tritonembed_perf.chaos.socket_attacks import connected

_PATIENCE_S = 8.0
_MIB = 1 << 20
_HEADERS_END = http2.END_HEADERS


async def _send(target: Target, sent: bytes, seconds: float = _PATIENCE_S) -> tuple[str, str]:
    try:
        async with connected(target, target.grpc_port) as (reader, writer):
            writer.write(http2.opening() + sent)
            await writer.drain()
            return await http2.read_answer(reader, writer, seconds), ""
    except OSError:
        return "closed", ""


async def metadata(target: Target, rng: random.Random) -> tuple[str, str]:
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
    return await _send(target, http2.call(good_message().SerializeToString(), [more]))


async def many_metadata(target: Target, rng: random.Random) -> tuple[str, str]:
    """Many calls on one connection, each with metadata that can't be forwarded."""
    message = good_message().SerializeToString()
    count = rng.choice((10, 60))
    calls = [http2.call(message, [(b"x-value", b"caf\xe9")], 2 * number + 1) for number in range(count)]
    return await _send(target, b"".join(calls))


async def message_without_end(target: Target, rng: random.Random) -> tuple[str, str]:
    """Part of a message; then the connection is silent until it is reset."""
    size = rng.choice((100_000, _MIB, 60 * _MIB))
    head = http2.frame(http2.HEADERS, _HEADERS_END, 1, http2.block(http2.grpc_fields()))
    # Less than a flow-control window: more would have to wait for WINDOW_UPDATE.
    part = http2.grpc_frame(b"x" * rng.choice((0, 1000, 16_000)), length=size)
    return await _send(target, head + http2.frame(http2.DATA, 0, 1, part), rng.uniform(1, 5))


async def wrong_grpc_frame(target: Target, rng: random.Random) -> tuple[str, str]:
    """gRPC's message prefix with unknown flags or wrong lengths, and noise marked as compressed."""
    message = good_message().SerializeToString()
    head = http2.frame(http2.HEADERS, _HEADERS_END, 1, http2.block(http2.grpc_fields()))
    packed = http2.block(http2.grpc_fields(more=[(b"grpc-encoding", rng.choice((b"gzip", b"deflate", b"zip")))]))
    data = rng.choice(
        (
            http2.grpc_frame(message, flag=1),
            http2.grpc_frame(message, flag=7),
            http2.grpc_frame(message, length=2**32 - 1),
            http2.grpc_frame(message, length=len(message) + 5),
            http2.grpc_frame(message, length=3),
            b"\0\0",
            b"",
        )
    )
    if rng.random() < 0.3:
        head = http2.frame(http2.HEADERS, _HEADERS_END, 1, packed)
        data = http2.grpc_frame(rng.randbytes(300), flag=1)
    return await _send(target, head + http2.frame(http2.DATA, http2.END_STREAM, 1, data))


async def wrong_head(target: Target, rng: random.Random) -> tuple[str, str]:
    """Header fields that no gRPC call has."""
    good = dict(http2.grpc_fields())
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
    head = http2.frame(http2.HEADERS, _HEADERS_END | http2.END_STREAM, 1, http2.block(fields))
    return await _send(target, head, 5)


async def broken_frames(target: Target, rng: random.Random) -> tuple[str, str]:
    """Frames that HTTP/2 forbids, and floods of frames that it allows."""
    head = http2.frame(http2.HEADERS, 0, 1, http2.block(http2.grpc_fields()))
    sent = rng.choice(
        (
            http2.frame(http2.DATA, 0, 0, b"hello"),
            http2.frame(http2.SETTINGS, 0, 0, b"123"),
            http2.frame(http2.SETTINGS, 0, 0, b"\0\4\xff\xff\xff\xff"),
            http2.frame(http2.WINDOW_UPDATE, 0, 0, bytes(4)),
            http2.frame(http2.WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff") * 3,
            http2.frame(http2.HEADERS, _HEADERS_END, 2, b"\xff" * 50),
            http2.frame(http2.HEADERS, _HEADERS_END, 1, rng.randbytes(100)),
            http2.frame(http2.PUSH, _HEADERS_END, 1, bytes(4)),
            http2.frame(200, 255, 1, rng.randbytes(100)),
            b"\xff\xff\xff" + rng.randbytes(200),
            http2.frame(http2.PING, 0, 0, bytes(8)) * 2000,
            http2.frame(http2.SETTINGS, 0, 0) * 2000,
            head + http2.frame(http2.CONTINUATION, 0, 1, http2.block([(b"x", b"y" * 100)])) * 1000,
        )
    )
    return await _send(target, sent, 3)


async def resets(target: Target, rng: random.Random) -> tuple[str, str]:
    """Many streams, each of which is opened and reset at once."""
    message = good_message((b"a text",) * 8).SerializeToString()
    cancel = (8).to_bytes(4, "big")
    opened = [
        http2.call(message, stream=stream) + http2.frame(http2.RST_STREAM, 0, stream, cancel)
        for stream in range(1, 2 * rng.choice((20, 90)), 2)
    ]
    return await _send(target, b"".join(opened), 1)


async def half_open(target: Target, rng: random.Random) -> tuple[str, str]:
    """A call whose client reads nothing and resets the connection before the answer."""
    try:
        async with connected(target, target.grpc_port) as (_, writer):
            message = good_message((b"a text",) * 64).SerializeToString()
            writer.write(http2.opening() + http2.call(message))
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
