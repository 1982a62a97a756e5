"""TLS on HTTP connections: the handshake comes first, then the connection's own protocol begins.

aiohttp and asyncio could do both at once. But then a connection would not count against its peer's limit before its
handshake is over, and all handshakes would have the first certificate. A failed handshake writes nothing to the log.
"""

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, Protocol


class Watch(Protocol):
    """What limits connections; its keys are protocols."""

    def made(self, key: asyncio.Protocol, transport: Any) -> None:
        """A connection was accepted."""

    def below(self, key: asyncio.Protocol, transport: Any) -> None:
        """The bytes of this connection are encrypted, and go through this transport."""

    def lost(self, key: asyncio.Protocol) -> None:
        """A connection was closed."""


class Handshake(asyncio.Protocol):
    """The protocol of an accepted connection until its handshake is over.

    make_inner: makes the protocol that takes over then. context: for this handshake. timeout: seconds for it.
    """

    def __init__(
        self, make_inner: Callable[[], asyncio.Protocol], context: ssl.SSLContext, timeout: float, watch: Watch
    ) -> None:
        self._make_inner = make_inner
        self._context = context
        self._timeout = timeout
        self._watch = watch
        self._early = bytearray()
        self._ended = False
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        # Bytes of the handshake must not arrive here.
        transport.pause_reading()
        self._watch.made(self, transport)
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
        self._watch.lost(self)

    async def _run(self, below: asyncio.Transport) -> None:
        try:
            over = await asyncio.get_running_loop().start_tls(
                below, self, self._context, server_side=True, ssl_handshake_timeout=self._timeout
            )
        except (OSError, asyncio.TimeoutError):
            # Whoever connects can make it fail: no TLS, no certificate, no bytes at all.
            below.abort()
            return
        finally:
            self._watch.lost(self)
        if over is None or self._ended or over.is_closing():
            below.abort()
            return
        inner = self._make_inner()
        over.set_protocol(inner)
        inner.connection_made(over)
        self._watch.below(inner, below)
        if self._early:
            inner.data_received(bytes(self._early))
