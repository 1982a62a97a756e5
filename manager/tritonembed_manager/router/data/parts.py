"""A large request that is sent in parts: each has its own server and its own failover; the answer is one.

If a part may have killed a server, or is refused as wrong, the request goes on whole: then it has one suspect, and the
error names the sentence as its sender counts it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import grpc

from tritonembed_manager.router.data.front_queue import Begin, FrontQueue
from tritonembed_manager.router.data.request import Request
from tritonembed_manager.router.data.split import Rows, join
from tritonembed_manager.router.data.upstream import Attempt, Upstream
from tritonembed_manager.router.interfaces import DispatchError

Follow = Callable[[Request, Upstream, Attempt], Awaitable[bytes]]


class GoWholeError(Exception):
    """The request has to be sent whole."""


class Parts:
    """begin: sends a part to a server. follow: returns the answer to a part that was sent, on whatever server."""

    def __init__(self, request: Request, rows: Rows, queue: FrontQueue, begin: Begin, follow: Follow) -> None:
        self._queue = queue
        self._request = request
        self._rows = rows
        self._begin = begin
        self._follow = follow
        self._parts: list[Request] = []
        self._tasks: list[asyncio.Task[bytes]] = []
        self._answered = 0
        self._asked = request.envelope.space
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def answer(self) -> bytes:
        """Send all parts, each in its turn. Returns the answer to the whole request.

        Raises DispatchError, BrokenAnswer, and GoWholeError; `tried` and `breaks` of the request then name the servers
        that broke under its parts.
        """
        try:
            with self._queue.waiting(self._request, self._send, self._done):
                await self._done
            return join([task.result() for task in self._tasks], [part.envelope.rows for part in self._parts])
        except DispatchError as error:
            if error.code is grpc.StatusCode.INVALID_ARGUMENT:
                raise GoWholeError from None
            raise
        finally:
            for task in self._tasks:
                task.cancel()
            # Their slots must be free before the request goes on or leaves.
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._take_over_breaks()
            self._request.envelope.space = self._asked

    def _send(self, server: Upstream, most: int) -> int:
        if self._done.done():
            return 0
        request = self._request
        message, count, taken, cut = self._rows.take(most)
        cut = cut if request.envelope.cut else 0
        envelope = replace(request.envelope, rows=count, cut=cut)
        part = Request(
            message, envelope, request.metadata, request.admitted, request.arrived, request.start_by, is_part=True
        )
        try:
            attempt = self._begin(part, server)
        except DispatchError as error:
            self._done.set_exception(error)
            return 0
        # All vectors of an answer are of one space, wherever a part is sent or sent again.
        envelope.space = request.envelope.space = request.envelope.space or attempt.space
        self._parts.append(part)
        task = asyncio.ensure_future(self._follow(part, server, attempt))
        task.add_done_callback(self._ended)
        self._tasks.append(task)
        return taken - cut if self._rows.left else request.work

    def _ended(self, task: "asyncio.Task[bytes]") -> None:
        if self._done.done():
            return
        if task.cancelled():
            self._done.cancel()
        elif error := task.exception():
            self._done.set_exception(error)
        else:
            self._answered += 1
            if not self._rows.left and self._answered == len(self._tasks):
                self._done.set_result(None)

    def _take_over_breaks(self) -> None:
        """A server that broke under several parts broke once."""
        for part in self._parts:
            for incarnation in part.tried:
                if incarnation not in self._request.tried:
                    self._request.tried.append(incarnation)
            for found in part.breaks:
                if all(found.server is not other.server for other in self._request.breaks):
                    self._request.breaks.append(found)
