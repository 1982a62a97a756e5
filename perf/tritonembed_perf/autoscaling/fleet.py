"""Servers behind one queue, whose number an autoscaler sets: when each request begins and ends, and what it costs.

Requests are served first come, first served, each by one server; a server takes the next request when it is free, as
behind the manager. A server that is ordered takes requests after `start_up` seconds and costs from its order on. A
server that is given back finishes its request. With a constant number of servers it is the queue G/G/c.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heapreplace

import numpy as np
import numpy.typing as npt

from tritonembed_perf.autoscaling.arrivals import Times

PERIOD_S = 15.0
"""Between two scrapes of Prometheus, and between two decisions of a HorizontalPodAutoscaler: its default."""


@dataclass(frozen=True)
class Seen:
    """What the metrics showed at one scrape. Work is in seconds of one server."""

    at: float
    ready: int
    """Servers that take requests."""
    ordered: int
    """Those and the ones that start."""
    arrived: float
    """Work that has come so far."""
    busy: float
    """Seconds that servers have computed so far, over all of them."""
    load: float
    """Work that waits or is computed: the sum of `tritonembed_load`."""
    started: int
    """Requests that have begun so far."""
    waited: float
    """Sum of the seconds that these had waited."""


Rule = Callable[[list[Seen]], int]
"""How many servers there should be, by the scrapes so far; the last one is the newest."""


@dataclass(frozen=True)
class Behavior:
    """The limits of an autoscaler, as in a HorizontalPodAutoscaler's `behavior`.

    up_pods, up_share: of the servers that it may add in a minute; the larger counts. down_pods, down_share: remove.
    settle: it removes down to the most that it wanted in so many seconds. tolerance: smaller changes are not made.
    """

    least: int = 1
    most: int = 10_000
    up_pods: int = 4
    up_share: float = 1.0
    down_pods: int = 1
    down_share: float = 0.1
    settle: float = 300.0
    tolerance: float = 0.1


@dataclass(frozen=True)
class Run:
    """What came of it. latencies: seconds of each request, in the order of arrival."""

    latencies: npt.NDArray[np.float64]
    server_seconds: float
    """Of all servers, from their order to their end."""
    seen: list[Seen] = field(repr=False)

    def percentile(self, percent: float) -> float:
        """Of the latencies, in seconds."""
        return float(np.percentile(self.latencies, percent))


class Scaler:
    """An autoscaler: a rule, and the limits of what it may change."""

    def __init__(self, rule: Rule, behavior: Behavior) -> None:
        self._rule, self._behavior = rule, behavior
        self._wanted: deque[tuple[float, int]] = deque()
        self._counts: deque[tuple[float, int]] = deque()
        """Times and numbers of servers of the last minute."""

    def decide(self, seen: list[Seen], current: int) -> int:
        """The number of servers from now on. current: ready or starting."""
        now, behavior = seen[-1].at, self._behavior
        self._counts.append((now, current))
        while self._counts[0][0] <= now - 60.0:
            self._counts.popleft()
        wanted = min(max(self._rule(seen), behavior.least), behavior.most)
        if abs(wanted - current) <= behavior.tolerance * current:
            wanted = current
        self._wanted.append((now, wanted))
        while self._wanted[0][0] < now - behavior.settle:
            self._wanted.popleft()
        if wanted > current:
            least = min(count for _, count in self._counts)
            return min(wanted, max(least + behavior.up_pods, int(least * (1 + behavior.up_share))))
        floor = max(count for _, count in self._wanted)
        if floor < current:
            most = max(count for _, count in self._counts)
            return max(floor, min(most - behavior.down_pods, int(most * (1 - behavior.down_share))))
        return current


def simulate(
    times: Times, services: Times, servers: int, seconds: float, scaler: Scaler | None = None, start_up: float = 60.0
) -> Run:
    """Serve requests that arrive at `times` and take `services` seconds each, with `servers` servers at the start.

    seconds: until no more come; those that wait then are still served. scaler: None for a constant number of servers.
    """
    free = [0.0] * servers
    """When each server takes its next request."""
    starting: list[float] = []
    """When each server that starts will be ready."""
    work = np.concatenate([[0.0], np.cumsum(services)])
    begins = np.empty(len(times))
    ends = np.empty(len(times))
    came, serves = times.tolist(), services.tolist()
    seen: list[Seen] = []
    head, at, cost, waited = 0, 0.0, 0.0, 0.0
    while at < seconds or head < len(came):
        until = at + PERIOD_S
        first = head
        head = _serve(came, serves, head, until, free, begins)
        ends[first:head] = begins[first:head] + services[first:head]
        waited += float(np.sum(begins[first:head] - times[first:head]))
        cost += PERIOD_S * (len(free) + len(starting)) if at < seconds else 0.0
        at = until
        for _ in [ready for ready in starting if ready <= at]:
            starting.pop(0)
            heappush(free, at)
        arrived = float(work[np.searchsorted(times, at, side="right")])
        residual = float(np.sum(np.maximum(np.array(free) - at, 0.0)))
        in_queue = max(arrived - float(work[head]), 0.0)
        seen.append(
            Seen(
                at,
                len(free),
                len(free) + len(starting),
                arrived,
                float(work[head]) - residual,
                in_queue + residual,
                head,
                waited,
            )
        )
        if scaler is not None and at < seconds and len(seen) > 1:
            # What it sees is a scrape old.
            wanted = scaler.decide(seen[:-1], len(free) + len(starting))
            _resize(wanted, free, starting, at + start_up)
    return Run(ends - times, cost, seen)


def _serve(
    came: list[float], serves: list[float], head: int, until: float, free: list[float], begins: npt.NDArray[np.float64]
) -> int:
    """Begin the requests that can begin before `until`; returns the first that can't."""
    count = len(came)
    while head < count:
        begin = came[head]
        soonest = free[0]
        if soonest > begin:
            begin = soonest
        if begin >= until:
            break
        begins[head] = begin
        heapreplace(free, begin + serves[head])
        head += 1
    return head


def _resize(wanted: int, free: list[float], starting: list[float], ready: float) -> None:
    more = wanted - len(free) - len(starting)
    starting.extend([ready] * max(more, 0))
    for _ in range(-more):
        # A server that starts is given up first, then the one that is free first.
        if starting:
            starting.pop()
        elif len(free) > 1:
            heappop(free)
    heapify(free)
