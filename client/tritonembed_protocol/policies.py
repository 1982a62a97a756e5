"""Which of several servers gets the next request, and how many requests may be sent again.

Policies: ``round_robin``, ``random`` and ``least_loaded``. A policy is pure: it looks at nothing but the candidates and
its own earlier choices, its dice are seeded, and it does no I/O. It has no lock: a caller that shares a policy between
threads chooses, and counts the load of the choice, under one lock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from random import Random as Dice
from typing import Literal, Protocol

PolicyName = Literal["least_loaded", "round_robin", "random"]

_REMEMBERED = 1024
_BUCKETS = 10


class PolicyCandidate(Protocol):
    """A server that could get a request now."""

    @property
    def key(self) -> str:
        """Its identity; the same each time it is a candidate."""

    @property
    def load(self) -> float:
        """Its outstanding work, in any unit that all candidates share, such as bytes of text."""


class Policy(Protocol):
    """Chooses servers."""

    def choose(self, candidates: Sequence[PolicyCandidate]) -> int:
        """The index of the server that gets the next request. Raises ValueError if there are no candidates."""


class RoundRobin:
    """The server whose last turn is longest ago; servers that never had a turn come first, in random order.

    Between two turns of a server, every other server that is a candidate all the time has exactly one turn. Over any
    stretch of time their numbers of requests differ by at most one, whichever other servers join, leave or miss turns.
    A server that joins or comes back gets the next request and then its share; missed turns are not made up for. First
    turns are in random order because many clients and workers start at once, and would all choose the same server.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._dice = Dice(seed)
        self._clock = 0
        self._turns: dict[str, int] = {}  # the oldest first

    def choose(self, candidates: Sequence[PolicyCandidate]) -> int:
        """The index of the candidate whose turn it is."""
        last = self._turns.get
        chosen = _least([last(candidate.key, 0) for candidate in candidates], self._dice)
        key = candidates[chosen].key
        self._clock += 1
        self._turns.pop(key, None)
        self._turns[key] = self._clock
        if len(self._turns) > max(_REMEMBERED, 2 * len(candidates)):
            # Forget servers that left. A server with the oldest turn comes first with or without its entry.
            del self._turns[next(iter(self._turns))]
        return chosen


class Random:
    """Any server, all with the same probability."""

    def __init__(self, seed: int | None = None) -> None:
        self._dice = Dice(seed)

    def choose(self, candidates: Sequence[PolicyCandidate]) -> int:
        """The index of a random candidate."""
        if not candidates:
            raise ValueError("there is no server to choose")
        return int(self._dice.random() * len(candidates))


class LeastLoaded:
    """The server with the least outstanding work; a random one of those with equally little.

    A request never goes to a server that has more to do than another server. Work is counted when a request is sent,
    not when it is answered: so a server that joins without load gets the next requests only until it has as much as the
    others. Each caller sees the load that it counts; callers that count only their own requests each fill a new server
    up to their own level. A server that fails at once has no load either: the caller leaves it out of the candidates.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._dice = Dice(seed)

    def choose(self, candidates: Sequence[PolicyCandidate]) -> int:
        """The index of a candidate with the least load."""
        return _least([candidate.load for candidate in candidates], self._dice)


_POLICIES: dict[str, type[RoundRobin] | type[Random] | type[LeastLoaded]] = {
    "round_robin": RoundRobin,
    "random": Random,
    "least_loaded": LeastLoaded,
}


def make_policy(name: str, seed: int | None = None) -> Policy:
    """A new policy. The same seed chooses the same servers among the same candidates. Raises ValueError."""
    try:
        return _POLICIES[name](seed)
    except KeyError:
        raise ValueError(f"the policy must be one of {', '.join(_POLICIES)}") from None


class RetryBudget:
    """Limits retries, so that they never become the load: retries <= max(least, share * requests) in the last window.

    window: seconds; it moves on in steps of a tenth.
    """

    def __init__(
        self,
        share: float = 0.2,
        window: float = 10.0,
        least: int = 3,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._share = share
        self._least = least
        self._clock = clock
        self._tick = window / _BUCKETS
        self._now = int(clock() / self._tick)
        self._requests = [0] * _BUCKETS
        self._retries = [0] * _BUCKETS

    def request(self) -> None:
        """Count a request."""
        self._turn()
        self._requests[self._now % _BUCKETS] += 1

    def take(self) -> bool:
        """Whether one more request may be sent again; if so, it is counted."""
        self._turn()
        if sum(self._retries) >= max(self._least, int(self._share * sum(self._requests))):
            return False
        self._retries[self._now % _BUCKETS] += 1
        return True

    def _turn(self) -> None:
        now = int(self._clock() / self._tick)
        for passed in range(max(self._now + 1, now - _BUCKETS + 1), now + 1):
            self._requests[passed % _BUCKETS] = self._retries[passed % _BUCKETS] = 0
        self._now = now


def _least(values: list[float], dice: Dice) -> int:
    if not values:
        raise ValueError("there is no server to choose")
    least = min(values)
    if values.count(least) == 1:
        return values.index(least)
    places = [place for place, value in enumerate(values) if value == least]
    return places[int(dice.random() * len(places))]
