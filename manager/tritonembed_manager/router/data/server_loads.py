"""What servers have before them, in seconds of their work, and how much work comes: what an autoscaler needs to know.

The estimate is that of the refusals (front_queue.py): bytes of requests, divided by the rate at which a server answered
while requests waited. Here a rate is not forgotten. A server that was never busy has none: then the mean of the others
counts. Before any server was busy, no work is known, and nothing waits either.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tritonembed_manager.router.data.upstream import Upstream


@dataclass
class Loads:
    """Of one worker; those of all workers add up. seconds: of work, by server. came: seconds of work since before."""

    seconds: dict[str, float] = field(default_factory=dict)
    came: float = 0.0

    def add(self, servers: Sequence[Upstream], usable: Sequence[Upstream], waiting: int, came: int) -> None:
        """Count the servers of one model.

        usable: those that share what waits. waiting: bytes that wait here. came: bytes that came since the last time.
        """
        for server in servers:
            server.show_rate()
        known = [rate for server in servers if (rate := server.rate)]
        mean = sum(known) / len(known) if known else 0.0
        share = waiting / len(usable) if usable else 0.0
        for server in servers:
            rate = server.rate or mean
            work = sum(attempt.work for attempt in server.attempts) + (share if server in usable else 0.0)
            self.seconds[server.key] = self.seconds.get(server.key, 0.0) + (work / rate if rate else 0.0)
        self.came += came / mean if mean else 0.0
