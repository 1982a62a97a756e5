"""A client that has sent all it has to send may close its half of the connection, and still gets its answer.

A client that has gone away looks the same at first. To tell the two apart, an interim answer is sent while the request
is worked on: it does nothing to a client that listens, and breaks the connection of one that is gone, which cancels its
request.
"""

import asyncio

from aiohttp import HttpVersion11, web

from tritonembed_manager.serve.http.errors import Handler

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
"""The one interim answer that every client of HTTP/1.1 skips."""
_FIRST_PAUSES_S = (0.02, 0.05, 0.2)
"""The connection of a client that is gone breaks at the second interim answer."""
_PAUSE_S = 1.0
_IDLE_LOOKS = 2

_handled: dict[web.RequestHandler, web.BaseRequest] = {}
"""The request that each connection works on, until its answer begins."""
_lingering: set["asyncio.Task[None]"] = set()


@web.middleware
async def note_request(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The outermost middleware."""
    connection = request.protocol
    _handled[connection] = request
    try:
        return await handler(request)
    finally:
        _handled.pop(connection, None)


class HalfClosingRunner(web.AppRunner):
    """An AppRunner whose connections may be closed by halves; its application needs `note_request`."""

    async def _make_server(self) -> "web.Server":
        server = await super()._make_server()
        # aiohttp has no other way to choose the class of its connections.
        server.__class__ = _Server
        return server


class _Server(web.Server):
    def __call__(self) -> web.RequestHandler:
        connection = super().__call__()
        connection.__class__ = _Connection
        return connection


class _Connection(web.RequestHandler):
    __slots__ = ()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Asyncio keeps a connection open if this is true."""
        task = asyncio.ensure_future(_finish(self))
        _lingering.add(task)
        task.add_done_callback(_lingering.discard)
        return True


async def _finish(connection: web.RequestHandler) -> None:
    """Close the connection once what came before its end is answered, or its client is found to be gone."""
    looks = idle = 0
    while connection.transport is not None:
        await asyncio.sleep(_FIRST_PAUSES_S[looks] if looks < len(_FIRST_PAUSES_S) else _PAUSE_S)
        looks += 1
        request, transport = _handled.get(connection), connection.transport
        if transport is None:
            return
        if request is None:
            # Between two requests, or the answer is being written.
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
        if looks > 1 and request.version >= HttpVersion11:
            transport.write(_CONTINUE)
