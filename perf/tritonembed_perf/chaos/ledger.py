"""The ledger: what became of every request, good or hostile, and the harms that were done to the service.

Harms are signals sent to the service's processes, and when everything was ready again. They explain why a request was
lost or a process restarted.
"""

import math
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

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


CONNECTION_LOST = "connection lost"
HANG = "no answer"
BROKEN = (
    CONNECTION_LOST,
    HANG,
    "UNAVAILABLE",
    "CANCELLED",
    "DEADLINE_EXCEEDED",
    "503",
    "504",
    "closed",
    "stream error",
)
"""Outcomes that a request can have if its worker is killed or stopped."""
_FROM_CORE = "Internal error from Core"
"""grpc.aio's own words, with INTERNAL, if it can't write on a stream whose connection broke."""
MOST_FINDINGS = 200

_BUDGET = "too many requests are retried"
_EVERY_SERVER = ("every server broke", "servers broke while")
_NO_SERVER = ("no server is ready", "no server became ready")
_LATE = (HANG, "DEADLINE_EXCEEDED", "504")
_BACK_S = 5.0
"""A request may be lost if its deadline passes within this many seconds after a server came back."""


def grpc_outcome(code: str, message: str) -> str:
    """The outcome of a gRPC call that failed with this code and these details."""
    return CONNECTION_LOST if (code, message) == ("INTERNAL", _FROM_CORE) else code


class LostRequest(Exception):
    """A request without an answer. code: the name of a gRPC code, an HTTP status, or one of the words above."""

    def __init__(self, code: str, message: str = "") -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code = code
        self.message = message


def documented_limit(lost: LostRequest, harms: Harms, began: float, ended: float) -> str | None:
    """The limit in docs/concepts/manager.md that explains why a good request was lost; None if there is none."""
    if lost.code in BROKEN and harms.during(WORKER, began, ended):
        return "its worker was killed or stopped"
    if _BUDGET in lost.message and harms.during(SERVER, began, ended):
        return "the retry budget"
    if any(words in lost.message for words in _EVERY_SERVER) and harms.during(SERVER, began, ended) > 1:
        return "every server was harmed while it worked on it"
    if any(words in lost.message for words in _NO_SERVER) and harms.had_outage(began, ended):
        return "no server was ready until its deadline"
    if lost.code in _LATE and harms.outage_s(began, ended) >= ended - began - _BACK_S:
        return "no server was ready until its deadline"
    return None


@dataclass
class Ways:
    """Counters of the good requests over one API."""

    sent: int = 0
    answered: int = 0
    sentences: int = 0
    retried: int = 0
    """Answered at the second attempt, after a harm had explained the loss of the first."""
    documented: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    latencies: list[float] = field(default_factory=list)


class CampaignLedger:
    """Counters, and one line for each finding that a person has to look at."""

    def __init__(self) -> None:
        self.ways: dict[str, Ways] = {}
        self.attacks: dict[str, Counter[str]] = {}
        self.unexpected: Counter[str] = Counter()
        """Attacks with an outcome that is not allowed, per kind."""
        self.findings: list[str] = []
        self.left_out = 0
        self.restarts: Counter[str] = Counter()
        self.uncaused: Counter[str] = Counter()
        self.highest_worker_mib = 0.0

    def way(self, name: str) -> Ways:
        """The counters of an API."""
        return self.ways.setdefault(name, Ways())

    def attack(self, name: str, outcome: str) -> None:
        """Count the outcome of an attack."""
        self.attacks.setdefault(name, Counter())[outcome] += 1

    def finding(self, line: str) -> None:
        """Print and keep a finding of one line. Those over MOST_FINDINGS are only counted."""
        if len(self.findings) >= MOST_FINDINGS:
            self.left_out += 1
            return
        self.findings.append(line)
        print(f"FINDING {line}", flush=True)

    @property
    def sent(self) -> int:
        """Good requests."""
        return sum(way.sent for way in self.ways.values())

    @property
    def answered(self) -> int:
        """Good requests answered with the right vectors."""
        return sum(way.answered for way in self.ways.values())

    @property
    def lost(self) -> int:
        """Good requests lost without a documented reason."""
        return sum(sum(way.lost.values()) for way in self.ways.values())

    @property
    def documented(self) -> int:
        """Good requests lost for a documented reason."""
        return sum(sum(way.documented.values()) for way in self.ways.values())

    @property
    def wrong(self) -> int:
        """Good requests answered with a wrong vector or in the wrong order."""
        return sum(way.wrong for way in self.ways.values())

    @property
    def attacked(self) -> int:
        """Hostile requests."""
        return sum(sum(outcomes.values()) for outcomes in self.attacks.values())

    def to_json(self) -> dict[str, Any]:
        """The part of the report that comes from the ledger."""
        codes: Counter[str] = Counter()
        for outcomes in self.attacks.values():
            codes.update(outcomes)
        return {
            "good": {name: _way_json(way) for name, way in sorted(self.ways.items())},
            "attacks": {
                "sent": self.attacked,
                "outcomes": dict(codes.most_common()),
                "by_kind": {name: dict(outcomes.most_common()) for name, outcomes in sorted(self.attacks.items())},
                "unexpected": dict(self.unexpected),
            },
            "restarts": {"caused": dict(self.restarts), "not_caused": dict(self.uncaused)},
            "highest_worker_mib": round(self.highest_worker_mib),
            "findings": self.findings,
            "findings_left_out": self.left_out,
        }


def _way_json(way: Ways) -> dict[str, Any]:
    latencies = sorted(way.latencies)
    return {
        "sent": way.sent,
        "answered": way.answered,
        "sentences": way.sentences,
        "retried_after_a_worker_was_harmed": way.retried,
        "lost_within_documented_limits": dict(way.documented),
        "lost": dict(way.lost),
        "wrong": way.wrong,
        "latency_ms": {f"p{part}": percentile(latencies, part) for part in (50, 99, 100)},
    }


def percentile(values: list[float], part: float) -> float | None:
    """A percentile of sorted seconds, in ms; None if there are no values."""
    if not values:
        return None
    return round(1000 * values[max(0, math.ceil(len(values) * part / 100) - 1)], 1)
