"""Which server gets a request, and whether a failed request goes to another server (failover): without I/O."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from threading import Lock
from time import monotonic

from tritonembed_protocol.policies import RetryBudget, make_policy
from tritonembed_protocol.status import classify

from ._errors import DeadlineExceededError, OverloadedError, TritonEmbedError

FIRST_EJECTION = 0.25
LONGEST_EJECTION = 8.0
LEAST_RETRIES = 3


class Upstream:
    """One of the servers, a candidate for a policy. It belongs to a Router, and to the Router's lock."""

    def __init__(self, index: int, key: str) -> None:
        self.index = index
        self.key = key
        self.load = 0  # bytes of text outstanding there
        self.breaks = 0  # failures of requests that were sent after the failure before
        self.failures = 0  # in a row
        self.ejected_until = -math.inf
        self.trying = 0  # requests outstanding there that were sent after the last break

    def is_open(self, now: float) -> bool:
        """Whether to send it requests: after a failure it is ejected for a while, then one request tries it."""
        return not self.failures or (now >= self.ejected_until and not self.trying)


class Attempt:
    """A request at a server. work: bytes of text."""

    __slots__ = ("breaks", "upstream", "work")

    def __init__(self, upstream: Upstream, work: int) -> None:
        self.upstream = upstream
        self.work = work
        self.breaks = upstream.breaks


class Router:
    """Spreads requests over servers by a policy; safe to use from several threads.

    Every ``begin`` is followed by exactly one of ``answered``, ``failed`` and ``dropped``.
    """

    def __init__(self, targets: Sequence[str], policy: str, clock: Callable[[], float] = monotonic) -> None:
        self.upstreams = [Upstream(index, target) for index, target in enumerate(targets)]
        self._policy = make_policy(policy)
        # Always enough for one request per server to find that it is dead.
        self._budget = RetryBudget(least=max(LEAST_RETRIES, len(self.upstreams)), clock=clock)
        self._clock = clock
        self._lock = Lock()
        self._closed = False

    def close(self) -> None:
        """Send nothing again from now on: the requests in flight are being cancelled."""
        self._closed = True

    def begin(self, work: int, tried: Collection[Upstream] = ()) -> Attempt:
        """The server for a request of ``work`` bytes. ``tried``: servers that had it already, never all of them."""
        with self._lock:
            if not tried:
                self._budget.request()
            now = self._clock()
            left = [upstream for upstream in self.upstreams if upstream not in tried]
            # If all have failed, an ejected server is better than none.
            candidates = [upstream for upstream in left if upstream.is_open(now)] or left
            upstream = candidates[self._policy.choose(candidates)]
            upstream.load += work
            upstream.trying += 1
            return Attempt(upstream, work)

    def answered(self, attempt: Attempt) -> None:
        """The server works."""
        with self._lock:
            self._end(attempt)
            if attempt.breaks == attempt.upstream.breaks:
                attempt.upstream.failures = 0

    def dropped(self, attempt: Attempt) -> None:
        """The request was given up on this side, which does not count for or against the server."""
        with self._lock:
            self._end(attempt)

    def failed(self, attempt: Attempt, error: TritonEmbedError, tried: Collection[Upstream]) -> bool:
        """Whether the request should go to another server; ``tried``: servers that had it, this server included."""
        broken = is_broken(error)
        if not broken and not isinstance(error, (OverloadedError, DeadlineExceededError)):
            self.answered(attempt)
            return False
        with self._lock:
            self._end(attempt)
            if isinstance(error, DeadlineExceededError) or self._closed:
                return False
            charged = self._eject(attempt)
            # A retry would make an overload worse; the ejection only turns the next requests away for a moment.
            if not broken or len(tried) == len(self.upstreams):
                return False
            return not charged or self._budget.take()

    def _end(self, attempt: Attempt) -> None:
        upstream = attempt.upstream
        upstream.load -= attempt.work
        if attempt.breaks == upstream.breaks:
            upstream.trying -= 1

    def _eject(self, attempt: Attempt) -> bool:
        """Eject the server for a while; whether the retry of the request is charged to the budget.

        Requests that were in flight when a server broke are retried for free, and so is the request that tries the
        server again.
        """
        upstream = attempt.upstream
        if attempt.breaks != upstream.breaks:
            return False
        worked = not upstream.failures
        seconds = min(FIRST_EJECTION * 2 ** min(upstream.failures, 10), LONGEST_EJECTION)
        upstream.ejected_until = self._clock() + seconds
        upstream.failures += 1
        upstream.breaks += 1
        upstream.trying = 0
        return worked


def is_broken(error: TritonEmbedError) -> bool:
    """Whether the server, or the connection to it, is gone, so that another server can answer."""
    return error.code is not None and classify(error.code.name, error.message).is_broken
