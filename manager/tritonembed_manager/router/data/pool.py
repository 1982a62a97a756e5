"""The servers that may receive requests now, by the parent's list and by this worker's own requests."""

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from tritonembed_manager.router.data.admission import Waiters
from tritonembed_manager.router.data.failover import Turns
from tritonembed_manager.router.data.load_table import LoadRow
from tritonembed_manager.router.data.outliers import TRIAL_S, Outlier, is_stalled, reason_to_eject
from tritonembed_manager.router.data.upstream import Attempt, Incarnation, Upstream
from tritonembed_manager.router.interfaces import ServerState, ServerView
from tritonembed_manager.server.client_tls import ClientTls

FIRST_PAUSE_S = 0.25
"""Seconds without requests for a server that was found broken, unless the parent finds it well before."""
_LONGEST_PAUSE_S = 8.0
_OUT = (ServerState.REFUSED, ServerState.FAILED, ServerState.DRAINING, ServerState.UNLOADED)


class UpstreamPool:
    """Servers in the order of the parent's list. A pool belongs to one event loop.

    suspect: called with (server id, reason in one line) when a request finds a server broken.
    ejected: called with (server id, reason, seconds) when a server is ejected as an outlier. tls: for grpcs:// servers.
    """

    def __init__(
        self,
        row: LoadRow,
        max_in_flight_per_server: int,
        suspect: Callable[[str, str], None],
        first_pause: float = FIRST_PAUSE_S,
        ejected: Callable[[str, str, float], None] = lambda _key, _reason, _seconds: None,
        clock: Callable[[], float] = time.monotonic,
        tls: ClientTls = ClientTls(),  # noqa: B008 - it is frozen
    ) -> None:
        self.row = row
        self._max_in_flight = max_in_flight_per_server
        self._suspect = suspect
        self._first_pause = first_pause
        self._ejected = ejected
        self._clock = clock
        self._tls = tls
        self._servers: dict[str, Upstream] = {}
        self._usable: list[Upstream] = []
        self.serving: Sequence[Upstream] = ()
        """Servers that receive requests, including a server that was just found broken: it may be well again soon."""
        self.changed: Callable[[], None] = lambda: None
        """Called whenever `serving` may have changed."""
        self.queued: Callable[[], int] = lambda: 0
        """Requests in the queue in front of the servers."""
        self.freed: Callable[[Upstream | None], None] = lambda _server: None
        """Called when a server has room again, or with None when the servers have changed."""
        self._leaving: list[Upstream] = []
        """Servers that are no longer listed but still have requests."""
        self.waiters = Waiters()
        self.turns = Turns()

    def update(self, views: Sequence[ServerView]) -> None:
        """Take over the parent's list. Requests in flight on a server that is down or refused are sent elsewhere."""
        gone, self._servers = self._servers, {}
        hopeless: list[Upstream] = []
        kept: list[Upstream] = []
        for view in views:
            server = gone.get(view.id)
            # Another slot has another column in the load table, so it counts as another server.
            if server is None or server.view.slot != view.slot:
                server = Upstream(view, self.row, clock=self._clock, tls=self._tls)
            else:
                kept.append(gone.pop(view.id))
                if server.follow(view):
                    hopeless.append(server)
            self._servers[view.id] = server
        self._refresh()
        if any(server.view.state is ServerState.READY for server in self._usable):
            # If no server is ready, requests stay where they are: the health checks may be wrong.
            hopeless.extend(server for server in kept if server.view.state is ServerState.UNHEALTHY)
        for server in hopeless:
            server.move(died=server.view.state is not ServerState.REFUSED)
        for server in gone.values():
            server.leave()
        self._leaving = [server for server in (*self._leaving, *gone.values()) if server.attempts]

    def set_tls(self, tls: ClientTls) -> None:
        """Reach grpcs:// servers with this from now on. Requests in flight finish on their connections."""
        self._tls = tls
        for server in self._servers.values():
            server.set_tls(tls)

    def views(self) -> list[ServerView]:
        """All servers, as the parent last reported them."""
        return [server.view for server in self._servers.values()]

    def servers(self) -> list[Upstream]:
        return list(self._servers.values())

    @property
    def most(self) -> int:
        """Requests of all workers that its servers may have at a time. Without servers: as many as one may have."""
        return self._max_in_flight * max(1, len(self._servers))

    def get(self, key: str) -> Upstream | None:
        return self._servers.get(key)

    def usable(self, tried: Collection[Incarnation] = ()) -> Sequence[Upstream]:
        """Servers to which a request may be sent, whatever their load. tried: those to which it was sent before."""
        if not tried:
            return self._usable
        return [server for server in self._usable if server.incarnation not in tried]

    def candidates(self, tried: Collection[Incarnation] = ()) -> Sequence[Upstream]:
        """Usable servers that have room."""
        bound = self._max_in_flight
        return [server for server in self.usable(tried) if server.in_flight < bound and server.is_open]

    def is_full(self) -> bool:
        """Whether there are no candidates because servers are full."""
        return any(server.is_open for server in self._usable)

    def is_over(self, requests: int) -> bool:
        """Whether this many requests of clients are more than the usable servers may have, or no server has room."""
        return requests > self._max_in_flight * len(self._usable) or not self.candidates()

    def exhausted(self, tried: Collection[Incarnation]) -> bool:
        """Whether waiting is useless: the request was sent to every server, and none of them is down."""
        return bool(tried) and all(
            server.incarnation in tried and server.view.state is ServerState.READY and not server.ejected
            for server in self._servers.values()
            if server.view.state not in _OUT
        )

    def broke(self, server: Upstream, reason: str, *, move: bool) -> None:
        """A request found the server broken: the server gets no requests for a while.

        move: whether to send its requests in flight elsewhere, because they would not fail soon.
        """
        server.breaks += 1
        server.answers = False
        pause = min(self._first_pause * 2.0**server.breaks_in_a_row, _LONGEST_PAUSE_S)
        server.breaks_in_a_row += 1
        if not self.failed(server):
            self._eject(server, pause)
        if move:
            server.move(died=True)
        self._suspect(server.key, reason)

    def failed(self, server: Upstream) -> bool:
        """Count a failure that points to the server. Returns whether the server is ejected, for this failure or
        before."""
        now = self._clock()
        if now < server.ejected_until:
            return True
        server.outlier.failed(now)
        reason = reason_to_eject(server.outlier, self._others(server), now)
        if reason is not None:
            self.eject(server, reason)
        return reason is not None

    def eject(self, server: Upstream, reason: str, seconds: float | None = None) -> None:
        """Eject a server as an outlier; send its requests elsewhere. seconds: given if another worker ejected it."""
        now = self._clock()
        pause = server.outlier.eject(now)
        if seconds is None:
            self._ejected(server.key, reason, pause)
        else:
            pause = seconds
        server.ejected_until = now + pause
        self._eject(server, pause)
        server.move(died=False)
        # The cause may be a dead connection.
        server.reconnect()

    def eject_for(self, key: str, reason: str, seconds: float) -> None:
        """Another worker ejected the server."""
        server = self.get(key)
        if server is not None and not server.ejected and self._others(server):
            self.eject(server, reason, seconds)

    def eject_stalled(self) -> None:
        """Eject servers that receive requests and answer none, while others answer. To be called twice per second."""
        now = self._clock()
        for server in list(self._usable):
            others = self._others(server)
            if not server.outlier.trial and is_stalled(server.outlier, server.oldest(), others, now):
                self.eject(server, "it answers nothing, while others answer")

    def cleared(self, key: str) -> None:
        """The parent checked a suspected server and found it well."""
        server = self.get(key)
        if server is None:
            return
        server.clears += 1
        if server.ejected and self._clock() >= server.ejected_until:
            server.renew()
            self._refresh()

    def move_all(self) -> None:
        """Take every request off its server, and wake every request that waits."""
        for server in (*self._servers.values(), *self._leaving):
            server.move(died=False)
        self.wake()

    def recovered(self, server: Upstream) -> None:
        """The request that tried an ejected server again was answered."""
        server.outlier.recovered()
        server.ejected, server.ejected_until = None, 0.0
        self._refresh()

    def begin(self, server: Upstream, attempt: Attempt) -> None:
        """A request was sent to a server. If the server is ejected, the request must be answered within TRIAL_S."""
        if server.outlier.trial:
            asyncio.get_running_loop().call_later(TRIAL_S, self._end_trial, server, attempt)

    @property
    def waiting(self) -> int:
        """Requests that wait for a server."""
        return len(self.waiters) + len(self.turns) + self.queued()

    def end(self, server: Upstream, attempt: Attempt) -> None:
        """A request has left a server, whose slot is free again."""
        server.end(attempt)
        if self.waiters:
            self.waiters.wake_one(server.incarnation)
        self.freed(server)

    async def close(self) -> None:
        """Close every connection."""
        servers = self.servers()
        self.update([])
        for server in servers:
            await server.forward.closed()

    def _others(self, server: Upstream) -> list[Outlier]:
        return [other.outlier for other in self._usable if other is not server]

    def _eject(self, server: Upstream, seconds: float) -> None:
        server.ejected = token = object()
        asyncio.get_running_loop().call_later(seconds, self._resume, server, token)
        self._refresh()

    def _resume(self, server: Upstream, token: object) -> None:
        if server.ejected is token:
            server.ejected = None
            self._refresh()

    def _end_trial(self, server: Upstream, attempt: Attempt) -> None:
        if not attempt.done.done():
            server.outlier.failed(self._clock())
            self.eject(server, f"the request that tried it again had no answer after {TRIAL_S:g} s")

    def _in_state(self, state: ServerState) -> list[Upstream]:
        return [server for server in self._servers.values() if server.view.state is state]

    def _refresh(self) -> None:
        # If no server is ready, unhealthy servers whose last request was answered count.
        self.serving = self._in_state(ServerState.READY) or [
            server for server in self._in_state(ServerState.UNHEALTHY) if server.answers
        ]
        # An outlier is better than no server at all.
        self._usable = [server for server in self.serving if not server.ejected] or self._only_outliers()
        self.wake()
        self.changed()

    def wake(self) -> None:
        """Let every request that waits check again whether it still has to wait."""
        self.waiters.wake_all()
        self.turns.wake_all()
        self.freed(None)

    def _only_outliers(self) -> list[Upstream]:
        now = self._clock()
        return list(self.serving) if all(now < server.ejected_until for server in self.serving) else []


@dataclass
class Loads:
    """The work before each server and the work that arrived, in seconds of a server, for an autoscaler.

    The estimate is that of refusals (front_queue.py): bytes of requests, divided by the rate at which a server answered
    while requests waited. Here a rate is never forgotten. A server that was never busy counts with the mean of the
    others. Before any server was busy, all is 0. The figures of all workers add up.

    seconds: by server. came: since the last call.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    came: float = 0.0

    def add(self, servers: Sequence[Upstream], usable: Sequence[Upstream], waiting: int, came: int) -> None:
        """Count the servers of one model.

        usable: servers that share what waits. waiting: bytes that wait here. came: bytes that arrived since the last
        call.
        """
        for server in servers:
            server.show_rate()
        known = [rate for server in servers if (rate := server.rate)]
        mean = sum(known) / len(known) if known else 0.0
        share = waiting / len(usable) if usable else 0.0
        for server in servers:
            rate = server.rate or mean
            work = sum(attempt.work for attempt in server.attempts) + (share if server in usable else 0.0)
            self.seconds[server.key] = self.seconds.get(server.key, 0.0) + (work / rate if rate else 0.0)
        self.came += came / mean if mean else 0.0
