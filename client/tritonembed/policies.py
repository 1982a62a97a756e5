"""Which of several servers gets the next request: ``round_robin``, ``random`` or ``least_loaded``.

A policy is pure: it looks at nothing but the candidates and what it chose before, its dice are seeded, and it does no
I/O. It is not locked: whoever shares one between threads chooses, and counts the load of the choice, under one lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random as Dice
from typing import Literal, Protocol

PolicyName = Literal["round_robin", "random", "least_loaded"]

_REMEMBERED = 1024


class Candidate(Protocol):
    """A server that could be sent a request now."""

    @property
    def key(self) -> str:
        """What tells it from the others; the same each time it is a candidate."""

    @property
    def load(self) -> float:
        """Its outstanding work, in any unit that all candidates share, such as bytes of text."""


class Policy(Protocol):
    """Chooses servers."""

    def choose(self, candidates: Sequence[Candidate]) -> int:
        """The index of the server that gets the next request; ValueError where there are no candidates."""


class RoundRobin:
    """The server whose last turn is longest ago; those that never had one come first, in random order.

    So between two turns of a server, each of the others that is there all the time has exactly one: over any stretch
    of time their numbers of requests differ by at most one, whoever else joins, leaves or misses turns meanwhile. A
    server that joins or comes back gets the next request and then its share; what it missed is not made up for. The
    order of the first turns is random because many clients and workers that start at once would all begin alike.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._dice = Dice(seed)
        self._clock = 0
        self._turns: dict[str, int] = {}  # the oldest first

    def choose(self, candidates: Sequence[Candidate]) -> int:
        """The index of the candidate whose turn it is."""
        last = self._turns.get
        chosen = _least([last(candidate.key, 0) for candidate in candidates], self._dice)
        key = candidates[chosen].key
        self._clock += 1
        self._turns.pop(key, None)
        self._turns[key] = self._clock
        if len(self._turns) > max(_REMEMBERED, 2 * len(candidates)):
            # Servers that left. Whoever had the oldest turn is among the first to be chosen with or without it.
            del self._turns[next(iter(self._turns))]
        return chosen


class Random:
    """Any server, each as likely as the others."""

    def __init__(self, seed: int | None = None) -> None:
        self._dice = Dice(seed)

    def choose(self, candidates: Sequence[Candidate]) -> int:
        """The index of some candidate."""
        if not candidates:
            raise ValueError("there is no server to choose")
        return int(self._dice.random() * len(candidates))


class LeastLoaded:
    """The server with the least outstanding work; one of them at random where several have as little.

    A server that joins has no load, and gets the next requests only until it has as much as the others: work is counted
    when a request is sent, not when it is answered, so each request sent there makes the next less likely to follow.
    However many arrive at once, a request never goes to a server that has more to do than another one. That holds as
    far as the load is seen: of callers that each count only their own requests, each fills the newcomer up to its own
    level. A server that fails at once has no load either; leaving it out of the candidates is up to the caller.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._dice = Dice(seed)

    def choose(self, candidates: Sequence[Candidate]) -> int:
        """The index of a candidate with the least load."""
        return _least([candidate.load for candidate in candidates], self._dice)


_POLICIES: dict[str, type[RoundRobin] | type[Random] | type[LeastLoaded]] = {
    "round_robin": RoundRobin,
    "random": Random,
    "least_loaded": LeastLoaded,
}


def make_policy(name: str, seed: int | None = None) -> Policy:
    """A new policy; the same seed chooses the same servers from the same candidates. ValueError for another name."""
    try:
        return _POLICIES[name](seed)
    except KeyError:
        raise ValueError(f"the policy is one of {', '.join(_POLICIES)}") from None


def _least(values: list[float], dice: Dice) -> int:
    if not values:
        raise ValueError("there is no server to choose")
    least = min(values)
    if values.count(least) == 1:
        return values.index(least)
    places = [place for place, value in enumerate(values) if value == least]
    return places[int(dice.random() * len(places))]
