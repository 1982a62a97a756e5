"""Which server gets a request, and whether a failed one goes to another: bookkeeping without I/O, for both clients."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from threading import Lock
from time import monotonic

import grpc

from ._errors import CancelledError, DeadlineExceededError, OverloadedError, TritonEmbedError, UnavailableError
from ._retry_budget import RetryBudget
from .policies import make_policy

FIRST_PAUSE = 0.25
LONGEST_PAUSE = 8.0
LEAST_RETRIES = 3

# What gRPC says, under various statuses, of a connection that broke.
BROKEN_CONNECTION = ("rst_stream", "connection reset", "stream removed", "socket closed", "goaway", "transport closed")


class Server:
    """One of the servers, a candidate for a policy. It belongs to a Router, and to the Router's lock."""

    def __init__(self, index: int, key: str) -> None:
        self.index = index
        self.key = key
        self.load = 0  # bytes of text outstanding there
        self.breaks = 0  # how often a failure was news: what was on its way by then is not news any more
        self.failures = 0  # in a row
        self.paused_until = -math.inf
        self.trying = 0  # requests outstanding there that were sent after the last break

    def is_open(self, now: float) -> bool:
        """Whether to send it requests: after a failure it is left alone for a while, then one request tries it."""
        return not self.failures or (now >= self.paused_until and not self.trying)


class Attempt:
    """A request at a server."""

    __slots__ = ("breaks", "server", "work")

    def __init__(self, server: Server, work: int) -> None:
        self.server = server
        self.work = work
        self.breaks = server.breaks


class Router:
    """Spreads requests over servers by a policy; safe to use from several threads.

    Every ``begin`` is followed by exactly one of ``answered``, ``failed`` and ``dropped``.
    """

    def __init__(self, targets: Sequence[str], policy: str, clock: Callable[[], float] = monotonic) -> None:
        self.servers = [Server(index, target) for index, target in enumerate(targets)]
        self._policy = make_policy(policy)
        # Finding each server dead once is always allowed.
        self._budget = RetryBudget(least=max(LEAST_RETRIES, len(self.servers)), clock=clock)
        self._clock = clock
        self._lock = Lock()
        self._closed = False

    def close(self) -> None:
        """From now on nothing is sent again: what is on its way is being cancelled."""
        self._closed = True

    def begin(self, work: int, tried: Collection[Server] = ()) -> Attempt:
        """The server for a request of so many bytes that has been to those servers already, not to all there are."""
        with self._lock:
            if not tried:
                self._budget.request()
            now = self._clock()
            left = [server for server in self.servers if server not in tried]
            # Where all have failed, failing again is worth as much as not trying.
            candidates = [server for server in left if server.is_open(now)] or left
            server = candidates[self._policy.choose(candidates)]
            server.load += work
            server.trying += 1
            return Attempt(server, work)

    def answered(self, attempt: Attempt) -> None:
        """The server works."""
        with self._lock:
            self._end(attempt)
            if attempt.breaks == attempt.server.breaks:
                attempt.server.failures = 0

    def dropped(self, attempt: Attempt) -> None:
        """The request was given up on this side, which says nothing of the server."""
        with self._lock:
            self._end(attempt)

    def failed(self, attempt: Attempt, error: TritonEmbedError, tried: Collection[Server]) -> bool:
        """Whether the request should go to another server; ``tried`` are those where it was, this one included."""
        broken = is_broken(error)
        if not broken and not isinstance(error, (OverloadedError, DeadlineExceededError)):
            self.answered(attempt)
            return False
        with self._lock:
            self._end(attempt)
            if isinstance(error, DeadlineExceededError) or self._closed:
                return False
            charged = self._rest(attempt)
            # An overload is not to be made worse; it only turns the next requests away from there for a moment.
            if not broken or len(tried) == len(self.servers):
                return False
            return not charged or self._budget.take()

    def _end(self, attempt: Attempt) -> None:
        server = attempt.server
        server.load -= attempt.work
        if attempt.breaks == server.breaks:
            server.trying -= 1

    def _rest(self, attempt: Attempt) -> bool:
        """Leave the server alone for a while; whether sending the request again is charged to the budget.

        What was on its way when a server broke is moved for free, and so is the one request that tries it again.
        """
        server = attempt.server
        if attempt.breaks != server.breaks:
            return False
        worked = not server.failures
        server.paused_until = self._clock() + min(FIRST_PAUSE * 2 ** min(server.failures, 10), LONGEST_PAUSE)
        server.failures += 1
        server.breaks += 1
        server.trying = 0
        return worked


def is_broken(error: TritonEmbedError) -> bool:
    """Whether the server, or the connection to it, is gone, so that another one can answer."""
    if isinstance(error, (UnavailableError, CancelledError)):
        # Nobody here cancelled it: a server does that, when it is shut down, with what it has not answered.
        return not isinstance(error, OverloadedError)
    words = error.message.lower()
    if error.code is grpc.StatusCode.INTERNAL and "stub process" in words and "not healthy" in words:
        return True
    failed = error.code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
    return failed and any(known in words for known in BROKEN_CONNECTION)
