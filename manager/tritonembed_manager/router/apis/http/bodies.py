"""Reads request bodies within limits: on the size of each, on the bytes of all in this worker, and on time.

Small and large bodies have separate limits, so that large bodies that stall take nothing from small ones. Only bytes
that have arrived count. If there is no room, a stalled body is given up in favour of a body that arrives.

Compressed bodies are decompressed here, so that each defect has its own error (RFC 9110, 8.4).
"""

import asyncio
import json
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from aiohttp import web

from tritonembed_manager.router.apis.http.connections import HttpLimits
from tritonembed_manager.router.apis.http.errors import BadRequest
from tritonembed_manager.router.data.admission import MAX_REQUEST, MEMORY_FULL, Memory
from tritonembed_manager.router.interfaces import DispatchError

ENCODINGS = ("gzip", "deflate")
_GZIP = ("gzip", "x-gzip")
"""Two names of one encoding (RFC 9110, 8.4.1.3)."""
_GZIP_WINDOW = zlib.MAX_WBITS | 16
_PIECE = 256 * 1024
_WRONG = "the body is not in the format of its Content-Encoding"
_CUT = "the body was cut: its compressed data is incomplete"
_ZLIB_METHOD = 8


class Decoder:
    """Decompresses a body chunk by chunk. header: the value of Content-Encoding. Raises BadRequest (415)."""

    def __init__(self, header: str) -> None:
        names = [name for part in header.split(",") if (name := part.strip().lower()) not in ("", "identity")]
        if len(names) > 1 or any(name not in (*_GZIP, "deflate") for name in names):
            known = " or ".join(ENCODINGS)
            raise BadRequest(f"the body's Content-Encoding must be {known}, applied once", status=415)
        self._name = names[0] if names else None
        self._stream: zlib._Decompress | None = None
        self._any = False

    def pieces(self, chunk: bytes) -> Iterator[bytes]:
        """The decompressed chunk, in pieces of bounded size. Raises BadRequest for malformed bytes."""
        if self._name is None:
            yield chunk
            return
        while chunk:
            if self._stream is None:
                if self._any and not chunk.strip(b"\0"):
                    # Padding after a gzip file; gzip's own tools skip it.
                    return
                self._stream = self._begin(chunk)
            try:
                piece = self._stream.decompress(chunk, _PIECE)
            except zlib.error:
                raise BadRequest(_WRONG) from None
            if piece:
                yield piece
            chunk = self._stream.unconsumed_tail
            if self._stream.eof:
                chunk = self._stream.unused_data
                self._stream = None
                self._any = True
                if chunk and self._name not in _GZIP:
                    raise BadRequest(_WRONG)

    def finish(self) -> None:
        """The body has ended. Raises BadRequest if its compressed form has not."""
        if self._stream is not None:
            raise BadRequest(_CUT)

    def _begin(self, chunk: bytes) -> "zlib._Decompress":
        if self._name in _GZIP:
            return zlib.decompressobj(_GZIP_WINDOW)
        if self._any:
            raise BadRequest(_WRONG)
        # "deflate" is zlib's format; some clients leave out zlib's header.
        return zlib.decompressobj(zlib.MAX_WBITS if chunk[0] & 0xF == _ZLIB_METHOD else -zlib.MAX_WBITS)


MEBIBYTE = 1024 * 1024
MAX_BODY = MAX_REQUEST
SMALL_BODY = MEBIBYTE
_MAX_HELD = 256 * MEBIBYTE
_SMALL_PART = 0.25
_PEER_PART = 0.5
"""The part of a limit (for small or for large bodies) that the bodies of one address may take."""
_PROGRESS = 64 * 1024
_STALLED_S = 1.0
"""A body that has brought less than _PROGRESS in this time may be given up for others."""
_RATE_WINDOW_S = 5.0
_LOOK_EVERY_S = 0.5


@dataclass(eq=False, slots=True)
class _Body:
    peer: str
    task: "asyncio.Task[Any] | None"
    since: float
    chunks: list[bytes] = field(default_factory=list)
    size: int = 0
    progressed: float = 0.0
    progress: int = 0
    window: float = 0.0
    window_size: int = 0
    refusal: Exception | None = None

    def give_up(self, refusal: Exception) -> None:
        """End the body with `refusal`, if it is still arriving."""
        if self.refusal is None and self.task is not None:
            self.refusal = refusal
            self.task.cancel()


class Bodies:
    """The bodies that this worker holds. max_body, max_held: bytes, after decompression.

    small: largest size of a small body in bytes. A quarter of max_held is for small bodies.
    """

    def __init__(
        self,
        limits: HttpLimits,
        max_body: int = MAX_BODY,
        max_held: int = _MAX_HELD,
        memory: Memory | None = None,
        *,
        small: int = SMALL_BODY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_body = max_body
        self._max_small = int(max_held * _SMALL_PART)
        self._max_large = max_held - self._max_small
        self._limits = limits
        self._memory = memory or Memory(lambda: 0)
        self._small = small
        self._clock = clock
        self._bodies: dict[_Body, None] = {}
        self.held = 0

    async def keep(self) -> None:
        """Give up bodies that are too slow, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            self.look()

    def look(self) -> None:
        """Give up bodies that are too slow."""
        now = self._clock()
        for body in list(self._bodies):
            if now - body.since >= self._limits.receive_timeout:
                body.give_up(_late(f"within {self._limits.receive_timeout:g} s (--receive-timeout)"))
            elif now - body.window >= _RATE_WINDOW_S:
                if body.size - body.window_size < self._limits.min_receive_rate * _RATE_WINDOW_S:
                    body.give_up(_late(f"at {self._limits.min_receive_rate:g} bytes per second (--min-receive-rate)"))
                body.window, body.window_size = now, body.size

    @asynccontextmanager
    async def read(self, request: web.Request) -> AsyncIterator[bytes]:
        """The decompressed body; it counts as held until the block is left. Raises as `read_chunks`."""
        async with self.read_chunks(request) as chunks:
            body = b"".join(chunks)
            chunks.clear()
            yield body

    @asynccontextmanager
    async def read_chunks(self, request: web.Request) -> AsyncIterator[list[bytes]]:
        """The decompressed body in pieces; it counts as held until the block is left.

        Raises BadRequest (413 for too large, 415 for an unknown encoding, 408 for too slow) and DispatchError (too much
        is held).
        """
        decoder = Decoder(",".join(request.headers.getall("Content-Encoding", ())))
        if (request.content_length or 0) > self._max_body:
            raise self._too_large()
        now = self._clock()
        body = _Body(request.remote or "", asyncio.current_task(), now, progressed=now, window=now)
        self._bodies[body] = None
        try:
            await self._receive(request, decoder, body)
            # The body has arrived: `give_up` must not cancel the task any more.
            body.task = None
            yield body.chunks
        except web.RequestPayloadError:
            raise BadRequest("the body does not match its headers") from None
        except asyncio.CancelledError:
            if body.refusal is None:
                raise
            raise body.refusal from None
        finally:
            del self._bodies[body]
            self.held -= body.size

    async def _receive(self, request: web.Request, decoder: Decoder, body: _Body) -> None:
        async for sent in request.content.iter_any():
            for turn, chunk in enumerate(decoder.pieces(sent)):
                if turn:
                    # A few bytes may decompress to many: let other tasks run.
                    await asyncio.sleep(0)
                self._add(body, chunk)
        decoder.finish()

    def _add(self, body: _Body, chunk: bytes) -> None:
        body.size += len(chunk)
        self.held += len(chunk)
        if body.size > self._max_body:
            raise self._too_large()
        if body.size - body.progress >= _PROGRESS:
            body.progress, body.progressed = body.size, self._clock()
        is_large = body.size > self._small
        if is_large and self._memory.pressure:
            raise DispatchError(grpc.StatusCode.RESOURCE_EXHAUSTED, MEMORY_FULL, 1.0)
        self._make_room(body, is_large=is_large)
        body.chunks.append(chunk)

    def _make_room(self, body: _Body, *, is_large: bool) -> None:
        limit = self._max_large if is_large else self._max_small
        if self.held <= min(limit, limit * _PEER_PART):
            return
        alike = [other for other in self._bodies if (other.size > self._small) is is_large]
        own = [other for other in alike if other.peer == body.peer]
        for among, most in ((own, limit * _PEER_PART), (alike, limit)):
            # A body larger than the limit is accepted if it is the only one.
            if sum(other.size for other in among) <= most or len(among) == 1:
                continue
            now = self._clock()
            stalled = [
                other
                for other in among
                if other.task and other is not body and other.refusal is None and now - other.progressed >= _STALLED_S
            ]
            if not stalled:
                message = f"overloaded: {int(most)} bytes of requests are being read; try again"
                raise DispatchError(grpc.StatusCode.RESOURCE_EXHAUSTED, message, 1.0)
            min(stalled, key=lambda other: other.progressed).give_up(_late("in time, and others waited for its memory"))

    def _too_large(self) -> BadRequest:
        return BadRequest(f"the body has more than {self._max_body} bytes", status=413)


def _late(how: str) -> BadRequest:
    return BadRequest(f"the body did not arrive {how}", status=408)


def parse_object(text: bytes) -> dict[str, Any]:
    """The JSON object in a body. Raises BadRequest."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except UnicodeDecodeError:
        raise BadRequest("the body is not JSON: it is not UTF-8") from None
    except (ValueError, RecursionError):
        raise BadRequest("the body's JSON can't be read: a number is too long, or it is nested too deep") from None
    if not isinstance(found, dict):
        raise BadRequest("the body is not a JSON object")
    return found
