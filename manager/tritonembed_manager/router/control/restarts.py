"""Restarts: how often and how soon a dead process is started again."""

from collections import deque
from dataclasses import dataclass, field


@dataclass(frozen=True)
class RestartLimits:
    """At most `limit` restarts per `window` seconds.

    The first restart is immediate. Later restarts wait for `first_delay` seconds, then twice as long each time, up to
    `longest_delay`.
    """

    limit: int
    window: float
    first_delay: float = 1.0
    longest_delay: float = 30.0


@dataclass
class Restarts:
    """Counts the deaths of a process. Callers pass the time, so that tests need no clock."""

    limits: RestartLimits
    count: int = 0
    """All restarts that were granted."""
    _deaths: deque[float] = field(default_factory=deque)

    def died(self, now: float) -> float | None:
        """Count a death at `now`. Returns the seconds until the restart; None if the process died too often."""
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

    def again(self) -> float:
        """Grant an immediate restart, because a death was forgiven. Returns its delay, 0 seconds."""
        self.count += 1
        return 0.0

    def forgive(self) -> None:
        """Don't count the last death: the process was not its cause."""
        if self._deaths:
            self._deaths.pop()
