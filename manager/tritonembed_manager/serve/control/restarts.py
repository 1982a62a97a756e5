"""How often and how soon a process that died is started again."""

from collections import deque
from dataclasses import dataclass, field


@dataclass(frozen=True)
class RestartLimits:
    """At most `limit` restarts within `window` seconds; the first is at once, the others after delays that double."""

    limit: int = 5
    window: float = 600.0
    first_delay: float = 1.0
    longest_delay: float = 30.0


@dataclass
class Restarts:
    """The deaths of one process. Time is given to it, so that tests need no clock."""

    limits: RestartLimits = field(default_factory=RestartLimits)
    count: int = 0
    """Restarts that were granted, in all."""
    _deaths: deque[float] = field(default_factory=deque)

    def died(self, now: float) -> float | None:
        """Seconds to wait before the next start; None when it died too often and stays down."""
        self._deaths.append(now)
        while now - self._deaths[0] > self.limits.window:
            self._deaths.popleft()
        recent = len(self._deaths)
        if recent > self.limits.limit:
            return None
        self.count += 1
        if recent == 1:
            return 0.0
        return min(self.limits.first_delay * 2.0 ** (recent - 2), self.limits.longest_delay)
