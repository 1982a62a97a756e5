"""A gRPC client of bare HTTP/2 frames, which can stop in the middle of a message."""

import asyncio
import struct
from contextlib import suppress

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_INITIAL_WINDOW = 4
_FRAME = 16384


class RawCalls:
    """Calls on one connection. Each sends one message and never ends its stream."""

    def __init__(self, port, *, source=None):
        self._port = port
        self._source = source
        self._streams = {}
        self._window = 65535
        self._initial = 65535
        self._changed = asyncio.Event()
        self._ended = asyncio.Event()
        self.received = b""
        """All bytes of headers and trailers, whose texts gRPC does not compress."""
        self.ended = set()
        """Stream ids of the calls that the server ended."""

    async def __aenter__(self):
        source = (self._source, 0) if self._source else None
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, local_addr=source)
        self._writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS, 0, 0, b""))
        self._reading = asyncio.ensure_future(self._read())
        return self

    async def __aexit__(self, *_):
        self._reading.cancel()
        self._writer.close()

    async def begin(self, path, announced, sent):
        """Begin a call, at the speed at which the server reads. announced, sent: bytes. Returns the stream id."""
        stream = 2 * len(self._streams) + 1
        self._streams[stream] = self._initial
        headers = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "a"}
        headers |= {"content-type": "application/grpc", "te": "trailers"}
        block = b"".join(b"\0" + _literal(name) + _literal(value) for name, value in headers.items())
        self._writer.write(_frame(_HEADERS, _END_HEADERS, stream, block))
        data = struct.pack(">BI", 0, announced) + bytes(sent)
        at = 0
        while at < len(data) and stream not in self.ended and not self._reading.done():
            size = min(_FRAME, len(data) - at, self._window, self._streams[stream])
            if size <= 0:
                self._changed.clear()
                await self._changed.wait()
                continue
            self._window -= size
            self._streams[stream] -= size
            self._writer.write(_frame(_DATA, 0, stream, data[at : at + size]))
            at += size
            await self._writer.drain()
        return stream

    async def end(self, count=1, limit=20):
        """Wait until the server has ended `count` calls. Raises TimeoutError if `limit` seconds pass without one."""
        while len(self.ended) < count:
            self._ended.clear()
            await asyncio.wait_for(self._ended.wait(), limit)

    async def _read(self):
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await self._reader.readexactly(9)
                size, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
                stream = int.from_bytes(head[5:], "big")
                self._take(kind, flags, stream, await self._reader.readexactly(size))
        self._changed.set()

    def _take(self, kind, flags, stream, payload):
        if kind == _SETTINGS and not flags & _ACK:
            for at in range(0, len(payload), 6):
                name, value = struct.unpack(">HI", payload[at : at + 6])
                if name == _INITIAL_WINDOW:
                    self._streams = {key: left + value - self._initial for key, left in self._streams.items()}
                    self._initial = value
            self._writer.write(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            self._writer.write(_frame(_PING, _ACK, 0, payload))
        elif kind == _WINDOW_UPDATE:
            more = int.from_bytes(payload, "big")
            if stream:
                self._streams[stream] += more
            else:
                self._window += more
        elif kind == _HEADERS:
            self.received += payload
        if kind == _RST_STREAM or (kind in (_HEADERS, _DATA) and flags & _END_STREAM):
            self.ended.add(stream)
            self._ended.set()
        self._changed.set()


def _frame(kind, flags, stream, payload):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _literal(text):
    return bytes([len(text)]) + text.encode()
