"""One Triton server as a worker deals with it: its connections, what is in flight there, and what it did lately."""

import asyncio
from collections.abc import Callable
from typing import Any

from tritonembed_manager.serve.forward import CHANNELS, Forward, Metadata
from tritonembed_manager.serve.load_table import LoadRow
from tritonembed_manager.serve.model import ServerState, ServerView

Incarnation = tuple[str, int]
"""A server from one start of its process to the next: what a request is never sent to twice."""


class Attempt:
    """A request in flight at a server."""

    __slots__ = ("call", "done", "forward", "incarnation", "seen_breaks", "slot", "work")

    def __init__(self, call: Any, server: "Server", work: int) -> None:
        self.call = call
        self.done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        """Its result is True once there is an answer, False when it is to be sent elsewhere."""
        self.forward = server.forward
        self.slot = server.view.slot
        self.work = work
        self.incarnation = server.incarnation
        self.seen_breaks = server.breaks

    def finished(self, _call: Any) -> None:
        """gRPC has the answer."""
        if not self.done.done():
            self.done.set_result(True)


class Server:
    """A server of the pool. `key` and `load` make it a candidate for a policy."""

    def __init__(self, view: ServerView, row: LoadRow, make_forward: Callable[[str, int], Forward] = Forward) -> None:
        self.view = view
        self.key = view.id
        self._row = row
        self._table = row.table
        self._make_forward = make_forward
        self.forward = make_forward(view.address, CHANNELS)
        self.attempts: set[Attempt] = set()
        self.incarnation: Incarnation = (view.id, 0)
        """What it is now, until it is started again."""
        self.breaks = 0
        """How often it was found broken; a request that began before the last time was in flight when it broke."""
        self.suspended: object | None = None
        """Found broken a moment ago: something that is true until it is forgotten, another one each time."""
        self.suspensions = 0
        """In a row, without an answer between them."""
        self.answers = view.state is ServerState.READY
        """Whether the last request brought an answer, good or bad; of a process that was never ready, False."""

    @property
    def load(self) -> float:
        """Bytes of text outstanding there for each of its replicas, from all workers."""
        return self._table.work(self.view.slot) / self.view.replicas

    @property
    def in_flight(self) -> int:
        """Requests outstanding there, from all workers."""
        return self._table.in_flight(self.view.slot)

    def begin(self, message: bytes, timeout: float, metadata: Metadata | None, work: int) -> Attempt:
        """Send a request; `end` must follow."""
        call = self.forward.infer(message, timeout, metadata)
        attempt = Attempt(call, self, work)
        call.add_done_callback(attempt.finished)
        self._row.begin(attempt.slot, work)
        self.attempts.add(attempt)
        return attempt

    def end(self, attempt: Attempt) -> None:
        """The request is no longer here."""
        self.attempts.discard(attempt)
        attempt.forward.done()
        self._row.end(attempt.slot, attempt.work)

    def answered(self) -> None:
        """It works, as far as a request goes."""
        self.answers = True
        self.suspensions = 0

    def move(self) -> None:
        """Send everything that is in flight here elsewhere."""
        self.breaks += 1
        for attempt in self.attempts:
            if not attempt.done.done():
                attempt.done.set_result(False)
                attempt.call.cancel()

    def follow(self, view: ServerView) -> bool:
        """What the parent says of it now. True when what is in flight has nothing to wait for there."""
        before, self.view = self.view, view
        another = view.restarts != before.restarts or view.address != before.address
        is_ready, was_ready = (each.state is ServerState.READY for each in (view, before))
        if another:
            self.incarnation = (self.key, self.incarnation[1] + 1)
        if another or (is_ready and not was_ready):
            self.renew()
            self.answers = is_ready
        return another or view.state in (ServerState.STARTING, ServerState.FAILED, ServerState.REFUSED)

    def renew(self) -> None:
        """It is well: not suspended any more, and on new channels: the old ones may wait before they connect again."""
        self.forward.retire()
        self.forward = self._make_forward(self.view.address, CHANNELS)
        self.suspended = None

    def leave(self) -> None:
        """No longer one of the servers: what is in flight finishes."""
        self.forward.retire()
