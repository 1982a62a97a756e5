"""The HTTP connections of a port: limited per peer, closed if idle, and answered if half closed.

A connection is closed if its request's head does not arrive in time, or if its client does not read its answers.

A client may close its half after the request and still wait for the answer. A client that has gone away looks the same
at first. To distinguish the two, an interim answer is sent while the request is handled. A waiting client skips it. The
connection of a client that is gone breaks, which cancels its request.

Malformed requests are answered here too: their sender gets a line with the reason, and none of their bytes gets into
the log.

With TLS, the handshake comes first, then the connection's own protocol begins. aiohttp and asyncio could do both at
once. But then a connection would not count against its peer's limit before its handshake is over, and all handshakes
would have the first certificate. A failed handshake writes nothing to the log.
"""

import asyncio
import logging
import re
import ssl
import time
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from aiohttp import HttpVersion11, web
from aiohttp.http_exceptions import BadStatusLine, InvalidHeader, LineTooLong
from yarl import URL

from tritonembed_manager.router.apis.http.errors import Handler

_SLASHES = re.compile(r"^/+(?:(v[12])/+)?")
_log = logging.getLogger(__name__)
_MAX_UNREAD = 192 * 1024 * 1024
_STALLED_S = 1.0
_LOOK_EVERY_S = 0.5
IDLE_S = 75.0
"""Seconds between two requests; the same as nginx's default."""


@dataclass(frozen=True)
class HttpLimits:
    """Times are in seconds; min_receive_rate: bytes of a body per second, over five seconds; peers are addresses."""

    header_timeout: float
    receive_timeout: float
    min_receive_rate: float
    max_connections_per_peer: int


@dataclass(slots=True)
class _Connection:
    transport: Any
    peer: str
    waits_since: float | None
    """Since when a request's head is awaited: the first, or one that has begun to arrive."""
    below: Any = None
    """With TLS, the transport of the encrypted bytes."""
    unread: int = 0
    unread_since: float = 0.0

    def unsent(self) -> int:
        """Bytes that the client has not taken yet."""
        sizes = (transport.get_write_buffer_size() for transport in (self.transport, self.below) if transport)
        return sum(sizes)


class Connections:
    """The methods follow those of an asyncio protocol. max_unread: bytes of answers that clients have not read."""

    def __init__(
        self, limits: HttpLimits, clock: Callable[[], float] = time.monotonic, max_unread: int = _MAX_UNREAD
    ) -> None:
        self.limits = limits
        self._clock = clock
        self._max_unread = max_unread
        self._open: dict[Hashable, _Connection] = {}
        self._peers: Counter[str] = Counter()

    def made(self, key: Hashable, transport: Any) -> None:
        """A connection was accepted; it is closed if its peer has too many."""
        name = transport.get_extra_info("peername")
        peer = name[0] if isinstance(name, tuple) else ""
        self._open[key] = _Connection(transport, peer, self._clock())
        self._peers[peer] += 1
        # Without an address, the peer is Envoy, through which all clients come.
        if peer and self._peers[peer] > self.limits.max_connections_per_peer:
            _log.warning(
                "an address has %d HTTP connections: new ones are closed", self.limits.max_connections_per_peer
            )
            transport.abort()

    def below(self, key: Hashable, transport: Any) -> None:
        """The bytes of this connection are encrypted, and go through this transport."""
        known = self._open.get(key)
        if known is not None:
            known.below = transport

    def lost(self, key: Hashable) -> None:
        """A connection was closed."""
        known = self._open.pop(key, None)
        if known is not None:
            self._peers[known.peer] -= 1
            if not self._peers[known.peer]:
                del self._peers[known.peer]

    def received(self, key: Hashable) -> None:
        """Bytes arrived while no request was being handled."""
        known = self._open.get(key)
        if known is not None and known.waits_since is None:
            known.waits_since = self._clock()

    def has_request(self, key: Hashable) -> None:
        """A request's head is complete."""
        known = self._open.get(key)
        if known is not None:
            known.waits_since = None

    async def keep(self) -> None:
        """Close connections that are late, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            self.look()

    def look(self) -> None:
        """Close connections that are late."""
        now = self._clock()
        total = 0
        for known in list(self._open.values()):
            if known.waits_since is not None and now - known.waits_since >= self.limits.header_timeout:
                known.transport.abort()
                continue
            unread = known.unsent()
            if not unread or unread < known.unread:
                known.unread_since = now
            known.unread = unread
            total += unread
            if unread and now - known.unread_since >= self.limits.receive_timeout:
                known.transport.abort()
        if total > self._max_unread:
            self._close_stalled(total, now)

    def _close_stalled(self, total: int, now: float) -> None:
        stalled = [known for known in self._open.values() if known.unread and now - known.unread_since >= _STALLED_S]
        for known in sorted(stalled, key=lambda known: known.unread, reverse=True):
            if total <= self._max_unread:
                return
            total -= known.unread
            known.transport.abort()


_KINDS: tuple[tuple[type[BaseException], str], ...] = (
    (LineTooLong, "its request line or a header is too long"),
    (InvalidHeader, "a header is malformed"),
    (BadStatusLine, "its request line is malformed"),
)


def _refuse_malformed(status: int, error: BaseException | None) -> web.Response:
    """The answer to a request that could not be read, or whose handler failed (status 500). It closes the connection.

    aiohttp itself would repeat the malformed line in the answer and in the log.
    """
    reason = next((reason for kind, reason in _KINDS if isinstance(error, kind)), "it is malformed")
    message = f"this is not a valid HTTP request: {reason}" if status < 500 else "internal error of the manager"
    _log.warning("HTTP %d (%s): %s", status, type(error).__name__, message)
    answer = web.json_response({"error": message}, status=status)
    answer.force_close()
    return answer


_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
"""The only interim answer that every HTTP/1.1 client skips."""
_FIRST_PAUSES_S = (0.02, 0.05, 0.2)
"""Seconds before each of the first checks. If a client is gone, its connection breaks at the second interim answer."""
_PAUSE_S = 1.0
_IDLE_LOOKS = 2

_handled: dict[web.RequestHandler, web.BaseRequest] = {}
"""The request that each connection handles."""
_begun: set[web.RequestHandler] = set()
"""Connections whose answer has begun: an interim answer would end up in the middle of it."""
_lingering: set["asyncio.Task[None]"] = set()


@web.middleware
async def note_request(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The outermost middleware: notes which request a connection handles."""
    connection = request.protocol
    _handled[connection] = request
    if isinstance(connection, _HalfClosing):
        connection.connections.has_request(connection)
    try:
        return await handler(request)
    finally:
        _handled.pop(connection, None)
        _begun.discard(connection)


async def note_answer(request: web.Request, _response: web.StreamResponse) -> None:
    """Notes that an answer begins; for the application's `on_response_prepare`."""
    _begun.add(request.protocol)


class Handshake(asyncio.Protocol):
    """The protocol of an accepted connection until its handshake is over.

    make_inner: makes the protocol that takes over then. context: for this handshake. timeout: seconds for it.
    """

    def __init__(
        self,
        make_inner: Callable[[], asyncio.Protocol],
        context: ssl.SSLContext,
        timeout: float,
        connections: Connections,
    ) -> None:
        self._make_inner = make_inner
        self._context = context
        self._timeout = timeout
        self._connections = connections
        self._early = bytearray()
        self._ended = False
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        # Bytes of the handshake must not arrive here.
        transport.pause_reading()
        self._connections.made(self, transport)
        if transport.is_closing():
            return
        self._task = asyncio.ensure_future(self._run(transport))

    def data_received(self, data: bytes) -> None:
        """Decrypted bytes that arrived together with the end of the handshake."""
        self._early += data

    def eof_received(self) -> bool | None:
        self._ended = True
        return None

    def connection_lost(self, exc: BaseException | None) -> None:  # noqa: ARG002
        self._ended = True
        self._connections.lost(self)

    async def _run(self, below: asyncio.Transport) -> None:
        try:
            over = await asyncio.get_running_loop().start_tls(
                below, self, self._context, server_side=True, ssl_handshake_timeout=self._timeout
            )
        except (OSError, asyncio.TimeoutError):
            # Any client can make it fail: without TLS, without a certificate, without bytes.
            below.abort()
            return
        finally:
            self._connections.lost(self)
        if over is None or self._ended or over.is_closing():
            below.abort()
            return
        inner = self._make_inner()
        over.set_protocol(inner)
        inner.connection_made(over)
        self._connections.below(inner, below)
        if self._early:
            inner.data_received(bytes(self._early))


class HalfClosingRunner(web.AppRunner):
    """An AppRunner whose clients may close their half of a connection. Its application needs `note_request`.

    connections: limits them. tls: the context of the next handshake; None for plain text.
    """

    def __init__(
        self,
        app: web.Application,
        connections: Connections,
        tls: Callable[[], ssl.SSLContext] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(app, **options)
        self._connections = connections
        self._tls = tls

    async def _make_server(self) -> "web.Server":
        server = await super()._make_server()
        # aiohttp has no other way to choose the class of its connections.
        server.__class__ = _Server
        assert isinstance(server, _Server)
        server.bounded = self._connections
        server.tls = self._tls
        server.request_factory = _merging_slashes(server.request_factory)
        return server


def _merging_slashes(make: Callable[..., web.BaseRequest]) -> Callable[..., web.BaseRequest]:
    """Requests whose path has one slash at its start and after the version, as in `//v1//embeddings`.

    Some clients join a base URL that ends in a slash with a path that begins with one. Later slashes can be part of a
    model's name.
    """

    def request(message: Any, *rest: Any) -> web.BaseRequest:
        path = _SLASHES.sub(lambda found: f"/{found[1]}/" if found[1] else "/", message.path)
        if path != message.path:
            url = URL.build(path=path.partition("?")[0], query_string=message.url.raw_query_string, encoded=True)
            message = message._replace(path=path, url=url)
        return make(message, *rest)

    return request


class _Server(web.Server):
    bounded: Connections
    tls: Callable[[], ssl.SSLContext] | None

    def __call__(self) -> asyncio.Protocol:  # type: ignore[override]
        if self.tls is None:
            return self._connection()
        return Handshake(self._connection, self.tls(), self.bounded.limits.header_timeout, self.bounded)

    def _connection(self) -> web.RequestHandler:
        connection = super().__call__()
        connection.__class__ = _HalfClosing
        return connection


class _HalfClosing(web.RequestHandler):
    __slots__ = ()

    @property
    def connections(self) -> Connections:
        assert isinstance(self._manager, _Server)
        return self._manager.bounded

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.connections.made(self, transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._manager is not None:
            self.connections.lost(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self not in _handled and self._manager is not None:
            self.connections.received(self)
        super().data_received(data)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Returns True, so that asyncio keeps the connection open. With TLS it can't: it closes both halves."""
        if self.transport is None or self.transport.get_extra_info("sslcontext") is not None:
            return False
        task = asyncio.ensure_future(_finish(self))
        _lingering.add(task)
        task.add_done_callback(_lingering.discard)
        return True

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002
    ) -> web.StreamResponse:
        """Answer bytes that are no HTTP request; aiohttp has no other way to choose the answer."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer is on its way already")
        return _refuse_malformed(status, exc)


async def _finish(connection: web.RequestHandler) -> None:
    """Close the connection once all its requests are answered, or its client turns out to be gone."""
    looks = idle = 0
    while connection.transport is not None:
        await asyncio.sleep(_FIRST_PAUSES_S[looks] if looks < len(_FIRST_PAUSES_S) else _PAUSE_S)
        looks += 1
        request, transport = _handled.get(connection), connection.transport
        if transport is None:
            return
        if request is None:
            # It is between two requests, or the answer is being written.
            idle = 0 if transport.get_write_buffer_size() else idle + 1
            if idle >= _IDLE_LOOKS:
                transport.close()
                return
            continue
        idle = 0
        if not request.content.is_eof():
            # The rest of its body will never come.
            transport.close()
            return
        if looks > 1 and connection not in _begun and request.version >= HttpVersion11:
            transport.write(_CONTINUE)
