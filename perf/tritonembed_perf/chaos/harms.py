"""Harms: signals sent to the service's processes, and when everything was ready again.

They explain why a request was lost or a process restarted.
"""

import time
from dataclasses import dataclass

SERVER, WORKER, HELPER = "server", "worker", "helper"
"""The end of a helper explains nothing: no good caller needs it."""
AFTER_S = 1.0
"""Seconds by which a broken connection is noticed late on a busy machine."""
EXPLAINS_S = 90.0
"""Seconds within which a harm leads to a restart. A stopped server takes longest: its health checks have to fail."""


@dataclass
class Harm:
    """One signal to one process. target: SERVER, WORKER or HELPER, what the process belongs to. id: the server's."""

    kind: str
    target: str
    id: str
    pid: int
    began: float
    ended: float | None = None
    """When a stopped process was continued or ended. For a killed process it equals `began`."""
    recovered: float | None = None
    """When everything was ready again."""
    claimed: bool = False
    """Whether a restart was seen that this harm explains."""

    @property
    def recovery_s(self) -> float | None:
        """Seconds until everything was ready again."""
        return None if self.recovered is None else self.recovered - self.began


class Harms:
    """All harms, and the times in which no server could work."""

    def __init__(self) -> None:
        self.all: list[Harm] = []
        self._outages: list[tuple[float, float]] = []

    def add(self, kind: str, target: str, id: str, pid: int) -> Harm:
        """Record a harm that happens now."""
        self.all.append(Harm(kind, target, id, pid, time.monotonic()))
        return self.all[-1]

    def open(self) -> list[Harm]:
        """The harms after which not everything is ready yet."""
        return [harm for harm in self.all if harm.recovered is None]

    def during(self, target: str, began: float, ended: float) -> int:
        """Number of harms to the target that overlap with a request's time.

        A worker's harm lasts until the worker runs again or is gone. A server's harm lasts until everything is ready.
        AFTER_S is added to both.
        """
        found = 0
        for harm in self.all:
            over = harm.ended if target == WORKER else harm.recovered
            found += harm.target == target and harm.began <= ended and (over is None or began <= over + AFTER_S)
        return found

    def outage(self, began: float, ended: float) -> None:
        """Record a time in which no server could work: each was not ready, or had a stopped process."""
        self._outages.append((began, ended))

    def outage_s(self, began: float, ended: float) -> float:
        """Seconds of a request's time in which no server could work."""
        return sum(max(0.0, min(ended, end) - max(began, start)) for start, end in self._outages)

    def had_outage(self, began: float, ended: float) -> bool:
        """Whether no server could work at some moment of a request's time."""
        return any(start <= ended and began <= end + AFTER_S for start, end in self._outages)

    def claim(self, target: str, id: str) -> bool:
        """Whether a harm explains a restart that was just seen. Each harm explains one restart."""
        now = time.monotonic()
        for harm in self.all:
            fits = harm.target == target and (target == WORKER or harm.id == id)
            if fits and not harm.claimed and now - harm.began < EXPLAINS_S:
                harm.claimed = True
                return True
        return False
