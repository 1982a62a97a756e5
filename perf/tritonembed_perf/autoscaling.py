"""Servers that an autoscaler starts and stops, simulated request by request: arrivals, the queue, and the rules.

Requests arrive in Poisson processes whose rate changes. They wait in one queue and are served first come, first served:
a free server takes the next request, as behind the manager. A new server takes requests after `start_up` seconds, and
costs from its order on. A server that is removed finishes its request. With a constant number of servers this is the
queue G/G/c.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heapreplace
from math import ceil, inf

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.float64]
"""Seconds from the start, in order; [requests]."""
Rate = Callable[[Times], Times]
"""The rate at each of these times, as a share of the highest; 0 to 1."""


def steady(times: Times) -> Times:
    """A constant rate."""
    return np.ones_like(times)


@dataclass(frozen=True)
class Wave:
    """The rate rises from `low` to 1 and falls again over `period` seconds, as over a day."""

    period: float
    low: float = 0.25

    def __call__(self, times: Times) -> Times:
        """The share at each time."""
        share: Times = self.low + (1 - self.low) * (1 - np.cos(2 * np.pi * times / self.period)) / 2
        return share


class Bursts:
    """A calm rate, and bursts of rate 1 at random moments (a Markov-modulated Poisson process of two states)."""

    def __init__(
        self, seed: int, seconds: float, calm: float = 0.4, burst: float = 60.0, between: float = 300.0
    ) -> None:
        """calm: the rate between bursts. burst, between: mean seconds of a burst, and from one to the next."""
        random = np.random.default_rng(seed)
        count = int(4 * seconds / (burst + between)) + 16
        spans = np.stack([random.exponential(between, count), random.exponential(burst, count)], axis=1)
        self._ends = np.cumsum(spans.ravel())
        self._calm = calm

    def __call__(self, times: Times) -> Times:
        """The share at each time."""
        is_burst = np.searchsorted(self._ends, times, side="right") % 2 == 1
        return np.where(is_burst, 1.0, self._calm)


def arrivals(rate: Rate, highest: float, seconds: float, seed: int) -> Times:
    """The moments of requests. highest: requests per second where `rate` is 1."""
    random = np.random.default_rng(seed)
    count = random.poisson(highest * seconds)
    times = np.sort(random.uniform(0.0, seconds, count))
    kept: Times = times[random.uniform(size=count) < rate(times)]
    return kept


PERIOD_S = 15.0
"""Between two scrapes of Prometheus, and between two decisions of a HorizontalPodAutoscaler: its default."""


@dataclass(frozen=True)
class Seen:
    """What the metrics showed at one scrape. Work is in seconds of one server."""

    at: float
    ready: int
    """Servers that take requests."""
    ordered: int
    """Servers that take requests, and servers that are starting."""
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
    settle: it removes servers down to the most that it wanted within this many seconds. tolerance: smaller changes are
    not made.
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
class SimulatedRun:
    """The result of a simulation. latencies: seconds of each request, in the order of arrival."""

    latencies: npt.NDArray[np.float64]
    server_seconds: float
    """The time of all servers, from their order to their end."""
    seen: list[Seen] = field(repr=False)

    def percentile(self, percent: float) -> float:
        """A percentile of the latencies, in seconds."""
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
) -> SimulatedRun:
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
    return SimulatedRun(ends - times, cost, seen)


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


def _before(seen: list[Seen], seconds: float) -> Seen:
    """The scrape that many seconds before the newest one; the first if that is younger."""
    return seen[max(len(seen) - 1 - round(seconds / PERIOD_S), 0)]


def _rate(new: float, old: float, seconds: float) -> float:
    return (new - old) / seconds if seconds > 0 else 0.0


@dataclass(frozen=True)
class LoadRule:
    """Ours: what comes per second, and what waits; the larger number of servers counts.

    use: seconds of work that come per second and server, `rate(tritonembed_work_seconds_total[1m])`. None: only what
    waits. backlog: seconds of work per server that may wait, `tritonembed_load`. None: only what comes. estimate: the
    work that is shown for a second of work; below 1, servers are taken for faster than they are.
    """

    use: float | None = 0.7
    backlog: float | None = 10.0
    estimate: float = 1.0

    def __call__(self, seen: list[Seen]) -> int:
        """Servers that it wants."""
        newest, old = seen[-1], _before(seen, 60.0)
        comes = self.estimate * _rate(newest.arrived, old.arrived, newest.at - old.at)
        return max(
            ceil(comes / self.use) if self.use else 0,
            ceil(self.estimate * newest.load / self.backlog) if self.backlog else 0,
        )


@dataclass(frozen=True)
class QueueTime:
    """NVIDIA's recipe: the mean time that requests of the last 30 s spent in Triton's queue.

    `avg(delta(nv_inference_queue_duration_us[30s]) / (1 + delta(nv_inference_request_success[30s])))`, averageValue.
    target: seconds. most: the longest wait that Triton's queue can show; the rest is in front of the servers.
    """

    target: float = 0.05
    most: float = inf

    def __call__(self, seen: list[Seen]) -> int:
        """Servers that it wants."""
        newest, old = seen[-1], _before(seen, 30.0)
        mean = (newest.waited - old.waited) / (1 + newest.started - old.started)
        return ceil(newest.ready * min(mean, self.most) / self.target)


@dataclass(frozen=True)
class Use:
    """The share of time in which processors work (nvidia-smi's GPU use, or a CPU's), over the last minute."""

    target: float = 0.8

    def __call__(self, seen: list[Seen]) -> int:
        """Servers that it wants."""
        newest, old = seen[-1], _before(seen, 60.0)
        return ceil(_rate(newest.busy, old.busy, newest.at - old.at) / self.target)
