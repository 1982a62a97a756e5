"""What a worker counts of its requests, cheaply, until somebody collects it."""

import random
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

import grpc

BOUNDS = tuple(round(step * 10.0**power, 6) for power in range(-4, 2) for step in (1.0, 1.5, 2.0, 3.0, 5.0, 7.0))[4:]
"""Upper bounds of the latency histograms' buckets, in seconds, from 0.5 ms to 70 s; above them is one more."""
_SAMPLE = 500
"""Latencies kept one by one between two collections."""


@dataclass
class Tally:
    """Requests since the last collection: of one server, or of all."""

    codes: Counter[grpc.StatusCode] = field(default_factory=Counter)
    """How they ended, OK among them."""
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    """How many took so long, of those that were answered: refusals take no time, and would look like a fast server."""
    seconds: float = 0.0
    """What they took, together."""
    latencies: list[float] = field(default_factory=list)
    """Seconds, one by one: all of them, or a fair sample."""
    timed: int = 0
    """How many the sample was taken from."""
    ejections: int = 0

    def add(self, code: grpc.StatusCode, seconds: float) -> None:
        """A request ended."""
        self.codes[code] += 1
        if code is not grpc.StatusCode.OK:
            return
        self.buckets[bisect_left(BOUNDS, seconds)] += 1
        self.seconds += seconds
        self.timed += 1
        if len(self.latencies) < _SAMPLE:
            self.latencies.append(seconds)
        elif (place := int(random.random() * self.timed)) < _SAMPLE:
            self.latencies[place] = seconds

    @property
    def requests(self) -> int:
        """How many ended."""
        return sum(self.codes.values())

    @property
    def errors(self) -> int:
        """How many of them failed; a caller that goes away is no failure."""
        return self.requests - self.codes[grpc.StatusCode.OK] - self.codes[grpc.StatusCode.CANCELLED]


@dataclass
class Tallies:
    """All that was counted since the last collection."""

    total: Tally = field(default_factory=Tally)
    servers: dict[str, Tally] = field(default_factory=dict)
    retries: int = 0
    """Sent again, charged to the budget."""
    moves: int = 0
    """Sent again because the server they were on died."""


class Meter:
    """Counts. One for each worker."""

    def __init__(self) -> None:
        self.tallies = Tallies()

    def request(self, code: grpc.StatusCode, seconds: float) -> None:
        """A request of a client ended."""
        self.tallies.total.add(code, seconds)

    def attempt(self, server: str, code: grpc.StatusCode, seconds: float) -> None:
        """A request to a server ended; one that is moved elsewhere counts as ABORTED."""
        self._server(server).add(code, seconds)

    def ejected(self, server: str) -> None:
        """A server was found broken."""
        self._server(server).ejections += 1

    def again(self, *, charged: bool) -> None:
        """A request is sent again."""
        if charged:
            self.tallies.retries += 1
        else:
            self.tallies.moves += 1

    def collect(self) -> Tallies:
        """What was counted since the last time."""
        found, self.tallies = self.tallies, Tallies()
        return found

    def _server(self, server: str) -> Tally:
        tally = self.tallies.servers.get(server)
        if tally is None:
            tally = self.tallies.servers[server] = Tally()
        return tally
