"""Outlier detection: decides when a server is ejected because requests fail there.

A health check is one small request. A server can pass it and fail all others. So each worker judges servers by its
own requests, as Envoy does: by failures in a row, and by the success rate in comparison with the other servers. The
terms are those of https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/outlier.
"""

from collections.abc import Iterable

IN_A_ROW = 5
"""Failures without an answer between them (Envoy's consecutive_5xx)."""
LEAST_REQUESTS = 20
LEAST_SHARE = 0.5
"""A server is an outlier if it answers less than this share of its requests, while the others together answer WELL."""
WELL = 0.9
WINDOW_S = 10.0
FIRST_EJECTION_S, LONGEST_EJECTION_S = 5.0, 60.0
TRIAL_S = 2.0
"""Seconds after which the request that tries an ejected server again is sent to another server."""
LEAST_WAIT_S = 1.0
"""A request whose deadline passes sooner is no evidence against the server."""
STALL_S, STALL_FACTOR = 3.0, 5.0
"""A server is stalled if it answers nothing for STALL_S, and for STALL_FACTOR times the others' slowest answer."""
SMALL_BYTES = 65_536
"""Only requests up to this size show a stall: a larger request may take long on a working server."""
_BUCKETS = 10


class Outlier:
    """The outcomes of one worker's requests at one server. Times are in seconds of one clock."""

    def __init__(self, now: float) -> None:
        self.in_a_row = 0
        self.last_answer = now
        self.trial = False
        """Whether the next request decides if the server is well again."""
        self.ejections = 0
        """Ejections in a row. The count restarts once the server was well for WINDOW_S, or for its last ejection time
        if longer."""
        self._well_since = now
        self._tick = 0
        self._answered = [0] * _BUCKETS
        self._failed = [0] * _BUCKETS
        self._slowest = [0.0] * _BUCKETS

    def answered(self, now: float, seconds: float) -> None:
        """A request was answered after this many seconds."""
        bucket = self._turn(now)
        self._answered[bucket] += 1
        if seconds > self._slowest[bucket]:
            self._slowest[bucket] = seconds
        self.in_a_row = 0
        self.last_answer = now

    def failed(self, now: float) -> None:
        """A request failed: with a suspicious status code, a broken connection, or no answer before its deadline."""
        self._failed[self._turn(now)] += 1
        self.in_a_row += 1

    def counts(self, now: float) -> tuple[int, int]:
        """Numbers of requests answered and failed in the last WINDOW_S."""
        self._turn(now)
        return sum(self._answered), sum(self._failed)

    def slowest(self, now: float) -> float:
        """Seconds that the slowest answer of the last WINDOW_S took."""
        self._turn(now)
        return max(self._slowest)

    def eject(self, now: float) -> float:
        """Eject the server. Returns for how many seconds: they grow until the server was well for a while."""
        if now - self._well_since > max(WINDOW_S, self._time(self.ejections)) and not self.trial:
            self.ejections = 0
        self.ejections += 1
        self.in_a_row = 0
        pause = self._time(self.ejections)
        self._well_since = now + pause
        self.trial = True
        return pause

    def recovered(self) -> None:
        """The trial request was answered."""
        self.trial = False

    @staticmethod
    def _time(ejections: int) -> float:
        return min(FIRST_EJECTION_S * 2.0 ** (ejections - 1), LONGEST_EJECTION_S) if ejections else 0.0

    def _turn(self, now: float) -> int:
        tick = int(now * _BUCKETS / WINDOW_S)
        for passed in range(max(self._tick + 1, tick - _BUCKETS + 1), tick + 1):
            bucket = passed % _BUCKETS
            self._answered[bucket] = self._failed[bucket] = 0
            self._slowest[bucket] = 0.0
        self._tick = max(self._tick, tick)
        return self._tick % _BUCKETS


def reason_to_eject(one: Outlier, others: Iterable[Outlier], now: float) -> str | None:
    """The reason to eject a server after a failure, in a few words; None if it is not ejected.

    others: the servers that requests could go to instead. The last server that answers is never ejected.
    """
    well = [other for other in others if other.in_a_row < IN_A_ROW and not other.trial]
    if not well:
        return None
    if one.trial:
        return "the request that tried it again failed"
    if one.in_a_row >= IN_A_ROW:
        return f"{one.in_a_row} requests in a row failed"
    answered, failed = one.counts(now)
    if answered + failed < LEAST_REQUESTS or answered >= LEAST_SHARE * (answered + failed):
        return None
    theirs = [other.counts(now) for other in well]
    total = sum(good + bad for good, bad in theirs)
    if total < LEAST_REQUESTS or sum(good for good, _ in theirs) < WELL * total:
        return None
    return f"{failed} of {answered + failed} requests failed"


def is_stalled(one: Outlier, oldest: float | None, others: Iterable[Outlier], now: float) -> bool:
    """Whether a server receives requests and answers none, while others answer.

    oldest: when the oldest small request in flight there was sent; None without such a request.
    """
    if oldest is None:
        return False
    theirs = [other for other in others if other.last_answer > oldest and not other.trial]
    if not theirs:
        return False
    silent = now - max(oldest, one.last_answer)
    return silent > max(STALL_S, STALL_FACTOR * max(other.slowest(now) for other in theirs))
