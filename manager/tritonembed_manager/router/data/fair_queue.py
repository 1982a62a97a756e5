"""Weighted fair queuing of requests, by their work, between priorities, callers and sizes.

It has neither clock nor event loop. Work is in bytes (window.py), which stand for tokens.

* Priority 1 goes ahead of priority 2. While both wait, priority 2 has one part in eight of the work and never starves.
* Callers of one priority share the work by their weights, whatever they send (start-time fair queuing: P.
  Goyal, H. M. Vin, H. Cheng, 1996). A caller that was idle does not save up its share.
* A caller's small requests go ahead of its large ones, up to half of the work. Requests of one kind keep their order.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any

from tritonembed_manager.router.interfaces import Caller

FIRST, SECOND = 1, 2
"""KServe's priorities; 0 and all others count as 2."""
_SHARES = 7
"""Work of priority 1, in multiples of that of priority 2, while both wait."""
_FORGET = 1024


@dataclass(eq=False, slots=True)
class Waiting:
    """A request that waits, or the rest of it. send: called by the owner of the queue at the request's turn."""

    caller: Caller
    priority: int
    work: int
    is_small: bool
    send: Callable[[Any, int], int]
    fail: Callable[[Exception], None] = lambda _error: None
    space: Callable[[], str] = lambda: ""
    """The embedding space of the servers to which it may be sent; empty for any."""
    request: Any = None
    """The owner's request."""
    gone: bool = False
    flow: "_Flow | None" = None


@dataclass(eq=False, slots=True)
class _Flow:
    """The requests of one caller with one priority. start: the virtual time at which its next work begins."""

    weight: float
    start: float = 0.0
    small: deque[Waiting] = field(default_factory=deque)
    large: deque[Waiting] = field(default_factory=deque)
    work: int = 0
    small_work: int = 0
    count: int = 0
    debt: int = 0
    """Work of small requests that went ahead of large ones, less the work of large ones that was sent since."""
    queued: bool = False

    def next(self, unit: int) -> Waiting:
        for waiting in (self.small, self.large):
            while waiting and waiting[0].gone:
                waiting.popleft()
        return self.small[0] if self.small and (not self.large or self.debt < unit) else self.large[0]


def _nothing(_server: Any, _most: int) -> int:
    return 0


class _Level:
    """The flows of one priority, in the order of their starts."""

    def __init__(self) -> None:
        self.now = 0.0
        """Virtual time: the start of the work that was taken last."""
        self.flows: dict[str, _Flow] = {}
        self.work = 0
        self.weight = 0.0
        """Sum of the weights of callers that wait."""
        self._heap: list[tuple[float, int, _Flow]] = []
        self._came = 0

    def flow(self, caller: Caller) -> _Flow:
        found = self.flows.get(caller.name)
        if found is None:
            if len(self.flows) > _FORGET + 2 * len(self._heap):
                self.flows = {name: flow for name, flow in self.flows.items() if flow.queued or flow.start > self.now}
            found = self.flows[caller.name] = _Flow(caller.weight, self.now)
        return found

    def push(self, flow: _Flow) -> None:
        self._came += 1
        flow.queued = True
        heappush(self._heap, (flow.start, self._came, flow))

    def head(self) -> _Flow | None:
        """The next flow; None if no request waits."""
        while self._heap:
            flow = self._heap[0][2]
            if flow.count:
                return flow
            self.pop()
        # No request waits: all callers are equal again.
        self.flows.clear()
        self.now = 0.0
        return None

    def pop(self) -> None:
        heappop(self._heap)[2].queued = False


class FairQueue:
    """Requests that wait. `unit` in its methods: the work of a part that is about to be sent, in bytes."""

    def __init__(self) -> None:
        self._levels = {FIRST: _Level(), SECOND: _Level()}
        self._ahead = 0
        """Work of priority 1 that went ahead of priority 2, less _SHARES times the work of priority 2 that was sent
        since."""
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def work(self) -> int:
        """Work of all requests that wait."""
        return sum(level.work for level in self._levels.values())

    def add(self, waiting: Waiting) -> None:
        level = self._levels[waiting.priority]
        flow = waiting.flow = level.flow(waiting.caller)
        if not flow.count:
            level.weight += waiting.caller.weight
            flow.weight, flow.debt = waiting.caller.weight, 0
        (flow.small if waiting.is_small else flow.large).append(waiting)
        if not flow.queued:
            flow.start = max(flow.start, level.now)
            level.push(flow)
        flow.count += 1
        self._count += 1
        self._add_work(waiting, waiting.work)

    def next(self, unit: int) -> Waiting | None:
        """The request whose turn it is; it stays in the queue."""
        first, second = (self._levels[priority].head() for priority in (FIRST, SECOND))
        if second is None:
            self._ahead = 0
        flow = second if first is None or (second is not None and self._ahead >= _SHARES * unit) else first
        return None if flow is None else flow.next(unit)

    def took(self, waiting: Waiting, work: int) -> None:
        """The request whose turn it was sent `work` bytes. It leaves if nothing is left of it."""
        level, flow = self._levels[waiting.priority], waiting.flow
        assert flow is not None
        if waiting.priority == FIRST:
            self._ahead += work if self._levels[SECOND].work else 0
        else:
            self._ahead = max(0, self._ahead - _SHARES * work)
        if waiting.is_small:
            flow.debt += work if flow.large else 0
        else:
            flow.debt = max(0, flow.debt - work)
        level.pop()
        level.now = flow.start
        flow.start += work / flow.weight
        taken = min(work, waiting.work)
        self._add_work(waiting, -taken)
        waiting.work -= taken
        if waiting.work <= 0:
            self.remove(waiting)
        if flow.count:
            level.push(flow)

    def remove(self, waiting: Waiting) -> None:
        """Remove a request that was sent or given up. Nothing happens if it left before."""
        if waiting.gone:
            return
        level, flow = self._levels[waiting.priority], waiting.flow
        assert flow is not None
        waiting.gone = True
        # The place in the deque may stay for a while, but its content must be freed.
        waiting.send = _nothing
        self._add_work(waiting, -waiting.work)
        flow.count -= 1
        self._count -= 1
        if not flow.count:
            level.weight -= flow.weight
        if not self._count:
            for each in self._levels.values():
                each.head()

    def has_share_left(self, caller: Caller, priority: int, unit: int) -> bool:
        """Whether a new request may pass all that wait: its caller has none waiting, and had at most its share."""
        if self._levels[FIRST].work if priority == SECOND else self._ahead >= _SHARES * unit:
            return False
        level = self._levels[priority]
        flow = level.flows.get(caller.name)
        return flow is None or (not flow.count and flow.start <= level.now)

    def charge(self, caller: Caller, priority: int, work: int) -> None:
        """The caller sent a request without waiting while others wait."""
        level = self._levels[priority]
        flow = level.flow(caller)
        flow.start = max(flow.start, level.now) + work / caller.weight
        if priority == FIRST and self._levels[SECOND].work:
            self._ahead += work

    def work_before(self, waiting: Waiting) -> float:
        """About the work that will be sent until this waiting request has been sent."""
        flow = waiting.flow
        assert flow is not None
        own = min(flow.work, 2 * flow.small_work) if waiting.is_small else flow.work
        level = self._levels[waiting.priority]
        total = sum(self._levels[priority].work for priority in (FIRST, SECOND) if priority <= waiting.priority)
        return min(total, own * level.weight / flow.weight)

    def all(self) -> list[Waiting]:
        """Every request that waits."""
        flows = [flow for level in self._levels.values() for flow in level.flows.values()]
        return [one for flow in flows for queue in (flow.small, flow.large) for one in queue if not one.gone]

    def _add_work(self, waiting: Waiting, work: int) -> None:
        flow = waiting.flow
        assert flow is not None
        flow.work += work
        flow.small_work += work if waiting.is_small else 0
        self._levels[waiting.priority].work += work
