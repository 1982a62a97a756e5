"""The queue in front of the servers: if a server's window has room, it gets the request that fair_queue.py chooses.

Each worker has a queue of its own. What workers share is in the load table: the work at each server, the weight of the
callers that each worker serves, and when small and large requests last met. A worker may fill the part of a server's
window that the others left. If the window is full, each worker may still have its share there, by the weight of its
callers. So no worker waits for another's answers, and a server has at most two windows of work.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from tritonembed_manager.router.data import spaces
from tritonembed_manager.router.data.fair_queue import FairQueue, Waiting
from tritonembed_manager.router.data.load_table import LoadRow
from tritonembed_manager.router.data.pool import UpstreamPool
from tritonembed_manager.router.data.request import EXPIRED, ForwardedRequest
from tritonembed_manager.router.data.upstream import Attempt, Upstream
from tritonembed_manager.router.data.window import BYTES_PER_TOKEN, LOOSE_S, MIXED_S, TIGHT_S
from tritonembed_manager.router.interfaces import Caller, DispatchError
from tritonembed_protocol.policies import Policy

SMALL = 1024 * BYTES_PER_TOKEN
"""Bytes. Requests up to this size are small: a person may be waiting for the answer."""
_SLACK = 0.25
"""Small requests may exceed a window by this share of it, so that they need not wait until a large part is done."""
_CLEARLY = 1.5
"""A request is refused if it would take this many times the time left until its deadline."""
LOOK_AGAIN_S = 0.1
"""Poll interval while requests wait: slots freed by other workers are not signalled."""
_MARK_EVERY_S = 0.5
_CODE = grpc.StatusCode
Begin = Callable[[ForwardedRequest, Upstream], Attempt]


class Callers:
    """The callers that have requests here, and their weight in the load table."""

    def __init__(self, row: LoadRow) -> None:
        self._row = row
        self._requests: dict[Caller, int] = {}

    def enter(self, caller: Caller) -> None:
        count = self._requests.get(caller, 0)
        self._requests[caller] = count + 1
        if not count:
            self._row.weigh(caller.weight)

    def leave(self, caller: Caller) -> None:
        count = self._requests[caller] = self._requests[caller] - 1
        if not count:
            del self._requests[caller]
            self._row.weigh(-caller.weight)


class FrontQueue:
    """begin: sends a request to a server; raises DispatchError. It belongs to one event loop. clock: seconds."""

    def __init__(
        self, pool: UpstreamPool, policy: Policy, row: LoadRow, begin: Begin, clock: Callable[[], float]
    ) -> None:
        self._pool = pool
        self._policy = policy
        self._row = row
        self._table = row.table
        self._begin = begin
        self._clock = clock
        self._queue = FairQueue()
        self._marked = {True: 0.0, False: 0.0}
        self._looking: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def work(self) -> int:
        """Work of the requests that wait here, in bytes."""
        return self._queue.work

    def counts(self) -> "Counter[tuple[int, str]]":
        """Requests that wait here, by priority and tenant; the tenant is empty without tenants."""
        return Counter((one.priority, one.caller.name if one.caller.is_tenant else "") for one in self._queue.all())

    def server_now(self, request: ForwardedRequest) -> Upstream | None:
        """The server for a request that need not wait; None if it has to wait."""
        work = request.work
        if work <= SMALL:
            self._mark(small=True)
        caller, priority = request.admitted.caller, request.envelope.priority
        servers = self._open(small=work <= SMALL)
        if request.envelope.space:
            servers = spaces.only(servers, request.envelope.space, self._pool.serving)
        if not servers:
            return None
        if self._queue:
            unit = servers[0].window.part(self._seconds())
            if work > SMALL or not self._queue.has_share_left(caller, priority, unit):
                return None
            self._queue.charge(caller, priority, work)
        return servers[self._policy.choose(servers)]

    def counted(self, request: ForwardedRequest, server: Upstream) -> int:
        """Bytes of the window that a request fills: at most a part, so that a large text leaves room for small
        texts."""
        return min(request.work, server.window.part(self._seconds()))

    def must_split(self, request: ForwardedRequest) -> bool:
        """Whether a request is more than a part."""
        work = request.work
        if work <= SMALL:
            return False
        seconds = self._seconds()
        return any(work > server.window.part(seconds) for server in self._pool.usable())

    async def turn(self, request: ForwardedRequest) -> tuple[Upstream, Attempt]:
        """Wait for the request's turn. Returns the server to which it was sent. Raises DispatchError."""
        found: asyncio.Future[tuple[Upstream, Attempt]] = asyncio.get_running_loop().create_future()

        def send(server: Upstream, _most: int) -> int:
            if found.done():
                return 0
            try:
                found.set_result((server, self._begin(request, server)))
            except DispatchError as error:
                found.set_exception(error)
                return 0
            return request.work

        try:
            with self.waiting(request, send, found):
                return await found
        except asyncio.CancelledError:
            if found.done() and not found.cancelled() and found.exception() is None:
                self.abandon(*found.result())
            raise

    def abandon(self, server: Upstream, attempt: Attempt) -> None:
        """Whether the caller of this request no longer waits for the answer."""
        attempt.call.cancel()
        self._pool.end(server, attempt)

    @contextmanager
    def waiting(
        self, request: ForwardedRequest, send: Callable[[Any, int], int], done: "asyncio.Future[Any]"
    ) -> Iterator[None]:
        """The request waits within the block, until all of it is sent. It may be sent in parts.

        send: sends at most that many bytes to the server, and returns their number; 0 if the request has failed. done:
        gets an exception if the request is given up. Raises DispatchError if it can't be in time.
        """

        def fail(error: Exception) -> None:
            if not done.done():
                done.set_exception(error)

        work = request.work
        waiting = Waiting(request.admitted.caller, request.envelope.priority, work, work <= SMALL, send, fail)
        waiting.space = lambda: request.envelope.space
        waiting.request = request
        self._mark(small=waiting.is_small)
        self._queue.add(waiting)
        loop = asyncio.get_running_loop()
        timer = None
        try:
            now = self._clock()
            self._refuse_if_late(waiting, request.start_by - now)
            timer = loop.call_later(max(request.give_up_at(now) - now, 0.0), self._give_up, waiting)
            self.pump()
            yield
        finally:
            if timer is not None:
                timer.cancel()
            self._queue.remove(waiting)

    def pump(self) -> None:
        """Send the requests that may be sent now."""
        queue = self._queue
        while queue and (servers := self._open()):
            waiting = queue.next(servers[0].window.part(self._seconds()))
            if waiting is None:
                break
            if space := waiting.space():
                try:
                    servers = spaces.only(servers, space, self._pool.serving)
                except DispatchError as error:
                    waiting.fail(error)
                    queue.remove(waiting)
                    continue
                if not servers:
                    break
            server = servers[self._policy.choose(servers)]
            sent = waiting.send(server, server.window.part(self._seconds()))
            if sent:
                queue.took(waiting, sent)
            else:
                queue.remove(waiting)
        if queue and self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(LOOK_AGAIN_S, self._look_again)

    def ended(self, server: Upstream) -> None:
        """A request is no longer at this server."""
        server.window.look(self._table.done(server.view.slot) if self._queue else 0, waiting=bool(self._queue))
        if self._queue:
            self.pump()

    def fail(self, error: Exception, chosen: Callable[[ForwardedRequest], bool] = lambda _request: True) -> None:
        """End every request that waits, or the chosen ones."""
        for waiting in self._queue.all():
            if chosen(waiting.request):
                waiting.fail(error)

    def _look_again(self) -> None:
        self._looking = None
        self.pump()

    def _open(self, *, small: bool = False) -> list[Upstream]:
        seconds = self._seconds()
        return [server for server in self._pool.candidates() if self._has_room(server, seconds, small)]

    def _has_room(self, server: Upstream, seconds: float, small: bool) -> bool:
        size = server.window.size(seconds)
        # Parts end between two rows, so a window's parts do not fill it exactly.
        size += size * _SLACK if small else -0.5 * server.window.part(seconds)
        slot, table = server.view.slot, self._table
        if table.work(slot) < size:
            return True
        return table.workers > 1 and self._row.work(slot) < size * self._share()

    def _share(self) -> float:
        """This worker's share of the servers, by the weight of its callers."""
        return self._row.weight() / max(self._table.weight(), self._row.weight(), 1)

    def _seconds(self) -> float:
        """Seconds that work may spend at a server."""
        mixed = self._table.mixed_at()
        return TIGHT_S if mixed and self._clock() - mixed < MIXED_S else LOOSE_S

    def _mark(self, *, small: bool) -> None:
        now = self._clock()
        if now - self._marked[small] >= _MARK_EVERY_S:
            self._marked[small] = now
            self._row.saw(now, small=small)

    def _give_up(self, waiting: Waiting) -> None:
        if waiting.gone:
            return
        self._queue.remove(waiting)
        if self._pool.usable():
            waiting.fail(DispatchError(_CODE.DEADLINE_EXCEEDED, EXPIRED))
        else:
            waiting.fail(DispatchError(_CODE.UNAVAILABLE, "no server became ready before the deadline"))

    def _refuse_if_late(self, waiting: Waiting, left: float) -> None:
        """Raises DispatchError if the request, which waits already, would clearly miss its deadline."""
        servers = self._pool.usable()
        rates = [server.window.best_rate for server in servers]
        known = [rate for rate in rates if rate]
        if not servers or len(known) < len(rates):
            return
        rate = sum(known)
        sent = sum(self._table.work(server.view.slot) for server in servers)
        work = self._queue.work_before(waiting) / (self._share() or 1.0) + sent
        if work / rate > left * _CLEARLY:
            # The words are the engine's: by them, clients know that no server is broken.
            raise DispatchError(
                _CODE.DEADLINE_EXCEEDED,
                f"it would end after its deadline passed: about {work / rate:.1f} s of work at "
                f"{rate / BYTES_PER_TOKEN:,.0f} tokens per second, and {max(left, 0.0):.1f} s are left",
            )
