"""The servers as the parent describes them and as requests find them: who can be sent a request now."""

import asyncio
from collections.abc import Callable, Collection, Sequence

from tritonembed_manager.serve.load_table import LoadRow
from tritonembed_manager.serve.model import ServerState, ServerView
from tritonembed_manager.serve.server import Attempt, Incarnation, Server
from tritonembed_manager.serve.waiters import Waiters

SUSPENSION_S = 0.25
"""How long a server that was found broken gets no requests, unless the parent finds it well before."""
_LONGEST_SUSPENSION_S = 8.0
_OUT = (ServerState.REFUSED, ServerState.FAILED, ServerState.DRAINING)


class ServerPool:
    """Servers in the order of the parent's list. It belongs to one event loop.

    suspect: told (server id, why in one line) when a request finds a server broken.
    """

    def __init__(
        self,
        row: LoadRow,
        max_in_flight_per_server: int,
        suspect: Callable[[str, str], None],
        suspension: float = SUSPENSION_S,
    ) -> None:
        self._row = row
        self._max_in_flight = max_in_flight_per_server
        self._suspect = suspect
        self._suspension = suspension
        self._servers: dict[str, Server] = {}
        self._usable: list[Server] = []
        self.serving: Sequence[Server] = ()
        """Where requests go. One that was found broken a moment ago is among them: it may be well in the next."""
        self.changed: Callable[[], None] = lambda: None
        """Called whenever it is another list, or may be."""
        self._leaving: list[Server] = []
        """No longer listed, and not yet without requests."""
        self.waiters = Waiters()

    def update(self, views: Sequence[ServerView]) -> None:
        """The parent's word. What is in flight on a server that is down or refused is sent elsewhere."""
        gone, self._servers = self._servers, {}
        hopeless: list[Server] = []
        kept: list[Server] = []
        for view in views:
            server = gone.get(view.id)
            # Loads of another slot are counted in another column: another server, then.
            if server is None or server.view.slot != view.slot:
                server = Server(view, self._row)
            else:
                kept.append(gone.pop(view.id))
                if server.follow(view):
                    hopeless.append(server)
            self._servers[view.id] = server
        self._refresh()
        if any(server.view.state is ServerState.READY for server in self._usable):
            # With none ready they stay where they are: it may be the health checks that are wrong.
            hopeless.extend(server for server in kept if server.view.state is ServerState.UNHEALTHY)
        for server in hopeless:
            server.move()
        for server in gone.values():
            server.leave()
        self._leaving = [server for server in (*self._leaving, *gone.values()) if server.attempts]

    def views(self) -> list[ServerView]:
        """All servers, as the parent last said."""
        return [server.view for server in self._servers.values()]

    def servers(self) -> list[Server]:
        """All servers."""
        return list(self._servers.values())

    def get(self, key: str) -> Server | None:
        """The server with that id."""
        return self._servers.get(key)

    def usable(self, tried: Collection[Incarnation] = ()) -> Sequence[Server]:
        """Where a request can be sent that has been to those already, whatever their load."""
        if not tried:
            return self._usable
        return [server for server in self._usable if server.incarnation not in tried]

    def candidates(self, tried: Collection[Incarnation] = ()) -> Sequence[Server]:
        """Those of them that have room."""
        bound = self._max_in_flight
        return [server for server in self.usable(tried) if server.in_flight < bound]

    def exhausted(self, tried: Collection[Incarnation]) -> bool:
        """Whether there is no use in waiting: it has been to every server there is, and none of them is down."""
        return bool(tried) and all(
            server.incarnation in tried and server.view.state is ServerState.READY and not server.suspended
            for server in self._servers.values()
            if server.view.state not in _OUT
        )

    def broke(self, server: Server, why: str, *, move: bool) -> None:
        """A request found it broken: no more go there for a while.

        move: what is in flight there is sent elsewhere, too, because it would not notice soon.
        """
        server.breaks += 1
        server.answers = False
        server.suspended = suspended = object()
        pause = min(self._suspension * 2.0**server.suspensions, _LONGEST_SUSPENSION_S)
        server.suspensions += 1
        asyncio.get_running_loop().call_later(pause, self._resume, server, suspended)
        self._refresh()
        if move:
            server.move()
        self._suspect(server.key, why)

    def cleared(self, key: str) -> None:
        """The parent looked at a server that somebody doubted, and it is well."""
        server = self.get(key)
        if server is not None and server.suspended:
            server.renew()
            self._refresh()

    def move_all(self) -> None:
        """No request is to stay where it is, or to go on waiting."""
        for server in (*self._servers.values(), *self._leaving):
            server.move()
        self.waiters.wake_all()

    def end(self, server: Server, attempt: Attempt) -> None:
        """A request is no longer at a server: the place is free again."""
        server.end(attempt)
        if self.waiters:
            self.waiters.wake_one(server.incarnation)

    async def close(self) -> None:
        """Close every connection."""
        servers = self.servers()
        self.update([])
        for server in servers:
            await server.forward.closed()

    def _resume(self, server: Server, suspended: object) -> None:
        if server.suspended is suspended:
            server.suspended = None
            self._refresh()

    def _in_state(self, state: ServerState) -> list[Server]:
        return [server for server in self._servers.values() if server.view.state is state]

    def _refresh(self) -> None:
        # If all look bad, those whose last request was answered count.
        self.serving = self._in_state(ServerState.READY) or [
            server for server in self._in_state(ServerState.UNHEALTHY) if server.answers
        ]
        self._usable = [server for server in self.serving if not server.suspended]
        self.waiters.wake_all()
        self.changed()
