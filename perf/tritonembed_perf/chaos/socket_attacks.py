"""Attacks over bare sockets: HTTP that no client sends, bodies and heads that stall, other protocols."""

import asyncio
import random
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from tritonembed_perf.chaos.attack import ANSWERED, CANARY, FROM, HUNG_UP, NAMED_WRONG, TOO_MUCH, Attack, AttackTarget

_PATIENCE_S = 10.0
_INFER = b"/v2/models/embedding/infer"
_MIB = 1 << 20
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def connected(target: AttackTarget, port: int) -> AsyncIterator[Streams]:
    """A connection that is reset on leaving."""
    reader, writer = await asyncio.open_connection(target.host, port, local_addr=FROM)
    try:
        yield reader, writer
    finally:
        reset(writer)


def reset(writer: asyncio.StreamWriter) -> None:
    """End the connection with RST, as if the client's machine were gone."""
    with suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def read_status(reader: asyncio.StreamReader, seconds: float = _PATIENCE_S) -> str:
    """The answer's HTTP status, without 100; `closed` or `silent` if there is none."""
    try:
        return await asyncio.wait_for(_status(reader), seconds)
    except (asyncio.TimeoutError, TimeoutError):
        return "silent"
    except (OSError, ValueError, IndexError):
        return "closed"


async def _status(reader: asyncio.StreamReader) -> str:
    while line := await reader.readline():
        if line.startswith(b"HTTP/") and line.split()[1] != b"100":
            return line.split()[1].decode(errors="replace")
    return "closed"


async def _raw(target: AttackTarget, sent: bytes, port: int | None = None) -> tuple[str, str]:
    try:
        async with connected(target, port or target.http_port) as (reader, writer):
            writer.write(sent)
            await writer.drain()
            return await read_status(reader), ""
    except OSError:
        return "closed", ""


async def malformed(target: AttackTarget, rng: random.Random) -> tuple[str, str]:
    """Heads that break HTTP/1.1's grammar, and bodies whose end is ambiguous."""
    post = b"POST " + _INFER + b" HTTP/1.1\r\nHost: a\r\n"
    canary = CANARY.encode()
    return await _raw(
        target,
        rng.choice(
            (
                post + b"Authorization : Bearer " + canary + b"\r\nContent-Length: 0\r\n\r\n",
                post + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
                post + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                post + b"Content-Length: -1\r\n\r\n",
                post + b"Content-Length: 1e3\r\n\r\n",
                post + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + canary + b"\r\n0\r\n\r\n",
                post + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
                post + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\n",
                post + b"Transfer-Encoding: xchunked\r\n\r\n" + canary,
                post + b"X: a\r\n folded " + canary + b"\r\nContent-Length: 0\r\n\r\n",
                post + b"X: a\x01b\r\nContent-Length: 0\r\n\r\n",
                post + b"X\xe9: caf\xe9\r\nContent-Length: 0\r\n\r\n",
                b"POST " + _INFER + b"?api_key=\x01" + canary + b" HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
                b"POST " + _INFER + b" HTTP/9.9\r\nHost: a\r\n\r\n",
                b"GET /status HTTP/1.1\nHost: a\n\n",
                b"GET http://elsewhere.example/status HTTP/1.1\r\nHost: b\r\n\r\n",
                b"CONNECT elsewhere.example:443 HTTP/1.1\r\nHost: b\r\n\r\n",
                b"GET /status HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 5000 + b"\r\n",
                b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
                b"GET /status HTTP/1.1\r\n\r\n",
                b"\r\n" * 1000,
                rng.randbytes(2000),
            )
        ),
    )


async def other_protocols(target: AttackTarget, rng: random.Random) -> tuple[str, str]:
    """TLS, HTTP/1 and noise on the gRPC port; TLS and HTTP/2 on the HTTP port."""
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(500)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)
    port, sent = rng.choice(
        (
            (target.grpc_port, hello),
            (target.grpc_port, b"GET /status HTTP/1.1\r\nHost: a\r\n\r\n"),
            (target.grpc_port, rng.randbytes(3000)),
            (target.http_port, hello),
            (target.http_port, preface),
        )
    )
    return await _raw(target, sent, port)


async def stalled_body(target: AttackTarget, rng: random.Random) -> tuple[str, str]:
    """Part of a large body, then nothing for a while, then a reset."""
    size = rng.choice((1, 8, 60)) * _MIB
    part = rng.choice((0, 100, size // 2, size - 1))
    head = b"POST " + rng.choice((_INFER, b"/v1/embeddings")) + b" HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
    return await _stall(target, head % size, part, rng.uniform(1, 6))


async def stalled_head(target: AttackTarget, rng: random.Random) -> tuple[str, str]:
    """A head that arrives a few bytes at a time and does not end."""
    try:
        async with connected(target, target.http_port) as (reader, writer):
            status = asyncio.ensure_future(read_status(reader))
            for _ in range(rng.choice((3, 10, 20))):
                writer.write(b"X-Slow: 1\r\n" if rng.random() < 0.5 else b"P")
                await writer.drain()
                done, _ = await asyncio.wait([status], timeout=0.3)
                if done:
                    return await status, ""
            status.cancel()
            return "silent", ""
    except OSError:
        return "closed", ""


async def idle_connections(target: AttackTarget, rng: random.Random) -> tuple[str, str]:
    """Connections that send nothing, or only the beginning of a request."""
    writers = []
    try:
        for _ in range(rng.choice((10, 50))):
            port = rng.choice((target.http_port, target.grpc_port))
            _, writer = await asyncio.open_connection(target.host, port, local_addr=FROM)
            writers.append(writer)
            writer.write(rng.choice((b"", b"POST /v1/embeddings HTTP/1.1\r\n", b"PRI * HTT")))
        await asyncio.sleep(rng.uniform(0.5, 4))
    except OSError:
        return "closed", ""
    finally:
        for writer in writers:
            reset(writer)
    return "silent", ""


async def reader_that_stops(target: AttackTarget, rng: random.Random) -> tuple[str, str]:
    """Many requests on one connection, whose answers are not read."""
    body = b'{"model": "%s", "input": "a text"}' % target.model.encode()
    one = b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    try:
        async with connected(target, target.http_port) as (_, writer):
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(one * rng.choice((5, 40)))
            await asyncio.sleep(rng.uniform(0.5, 3))
    except OSError:
        return "closed", ""
    return "silent", ""


async def _stall(target: AttackTarget, head: bytes, part: int, seconds: float) -> tuple[str, str]:
    try:
        async with connected(target, target.http_port) as (reader, writer):
            writer.write(head)
            piece = b" " * min(part, _MIB)
            for _ in range(part // len(piece) if piece else 0):
                writer.write(piece)
                await writer.drain()
            return await read_status(reader, seconds), ""
    except OSError:
        return "closed", ""


def socket_attacks() -> list[Attack]:
    bad_http = NAMED_WRONG | HUNG_UP | TOO_MUCH | {"414", "431", "505"}
    return [
        # Two of the heads are accepted: GET with bare LF, and GET without a Host.
        Attack("socket: malformed HTTP", malformed, bad_http | ANSWERED, 2.0),
        Attack("socket: another protocol", other_protocols, bad_http),
        Attack("socket: a body that stalls", stalled_body, HUNG_UP | TOO_MUCH | {"400"}),
        Attack("socket: a head that stalls", stalled_head, HUNG_UP | {"400"}),
        Attack("socket: idle connections", idle_connections, HUNG_UP, 0.5),
        Attack("socket: answers that nobody reads", reader_that_stops, HUNG_UP, 0.5),
    ]
