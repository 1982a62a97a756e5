"""The ledger: what became of every request, good or hostile."""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tritonembed_perf.chaos.harms import SERVER, WORKER, Harms

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


class Lost(Exception):
    """A request without an answer. code: the name of a gRPC code, an HTTP status, or one of the words above."""

    def __init__(self, code: str, message: str = "") -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code = code
        self.message = message


def documented_limit(lost: Lost, harms: Harms, began: float, ended: float) -> str | None:
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


class Ledger:
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
