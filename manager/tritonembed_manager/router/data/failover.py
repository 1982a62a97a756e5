"""Failover: a request whose server broke goes to another server. A request that may have killed a server goes alone.

If a server dies, each request that was in flight there may be the cause. If they were sent on together, all of them
would be in flight on the next server that dies, and the cause would stay unknown. So a suspected request needs the lane
of its next server. A server has one lane, which one request of all workers holds at a time; other requests are served
meanwhile. If that server dies too, the cause is known. The suspicion ends if a health check finds the first server
well.

A query of death is a request that kills servers. The quarantine refuses it, and equal requests, for a while.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b

from tritonembed_manager.router.data.admission import Waiters
from tritonembed_manager.router.data.envelope import Span
from tritonembed_manager.router.data.upstream import Upstream

VERDICT_S = 3.0
"""Seconds to wait until the parent reports whether a server died."""
_TURN = "turn"


@dataclass(slots=True)
class Break:
    """A server broke or stopped answering with a request in flight. deaths, clears: the counts when the request was
    sent."""

    server: Upstream
    deaths: int
    clears: int

    @property
    def died(self) -> bool:
        """Whether the parent has confirmed that the server died."""
        return self.server.view.deaths > self.deaths

    @property
    def dismissed(self) -> bool:
        """Whether a health check found the server well: only a connection broke."""
        return not self.died and self.server.clears > self.clears


class Turns:
    """Requests that need a lane poll for it in turn, because a lane that another worker frees is not signalled."""

    def __init__(self) -> None:
        self._taken = False
        self._waiters = Waiters()

    def __len__(self) -> int:
        return len(self._waiters)

    def take(self) -> bool:
        """Take the turn if it is free; `give` must follow. Returns whether it was free."""
        if self._taken:
            return False
        self._taken = True
        return True

    def give(self) -> None:
        """Pass the turn on to the next request."""
        self._taken = False
        self._waiters.wake_one(_TURN)

    def wake_all(self) -> None:
        """Wake all waiting requests: they may be waiting for something else now."""
        self._waiters.wake_all()

    async def wait(self, seconds: float) -> None:
        """Wait until it may be the caller's turn, at most `seconds`."""
        await self._waiters.wait(seconds, ())


KEPT_S = 600.0
MOST_SERVERS = 2
"""Servers that may die with a request in flight before the request is given up."""
MOST_KEPT = 1024
REASON = (
    "two servers died with this request in flight: it is not retried, and requests like it are refused for "
    f"{KEPT_S / 60:g} minutes"
)


def digest(message: bytes, own: list[Span]) -> str:
    """The digest of an encoded request without its id and timeout: the same for all requests that ask for the same.

    own: where id and timeout are. The digest begins with the size, which alone distinguishes most requests.
    """
    hashed = blake2b(digest_size=16)
    at = 0
    view = memoryview(message)
    for begin, end in own:
        hashed.update(view[at:begin])
        at = end
    hashed.update(view[at:])
    return f"{_size_of(message, own)}:{hashed.hexdigest()}"


def _size_of(message: bytes, own: list[Span]) -> int:
    """Bytes that go into the digest."""
    return len(message) - sum(end - begin for begin, end in own)


class Quarantine:
    """The requests that are refused now. Times are those of `clock`, which all processes of a machine share."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: dict[str, float] = {}
        self._sizes: set[int] = set()

    def __len__(self) -> int:
        self._forget()
        return len(self._until)

    def add(self, digest: str, until: float | None = None) -> None:
        """Refuse requests with this digest until the time given, by default for KEPT_S from now."""
        self._until[digest] = self._clock() + KEPT_S if until is None else until
        self._forget()
        while len(self._until) > MOST_KEPT:
            del self._until[min(self._until, key=lambda kept: self._until[kept])]
        self._sizes = {int(kept.partition(":")[0]) for kept in self._until}

    def entries(self) -> dict[str, float]:
        """Digests, and the time until which each is refused."""
        self._forget()
        return dict(self._until)

    def holds(self, message: bytes, own: list[Span]) -> bool:
        """Whether a request is refused. Cheap unless a refused request has the same size."""
        if not self._sizes or _size_of(message, own) not in self._sizes:
            return False
        return self._until.get(digest(message, own), 0.0) > self._clock()

    def _forget(self) -> None:
        now = self._clock()
        over = [kept for kept, until in self._until.items() if until <= now]
        for kept in over:
            del self._until[kept]
        if over:
            self._sizes = {int(kept.partition(":")[0]) for kept in self._until}
