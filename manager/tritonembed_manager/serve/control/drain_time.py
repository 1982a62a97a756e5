"""How --drain-timeout is divided among those who end one after the other."""

from dataclasses import dataclass

SERVERS_END_S = 5.0
"""What launched servers get at most to end, once nothing is in flight."""
_CLOSING_S = 3.0
"""A second each for callers that go on asking, for gRPC's last answers and for HTTP's."""


@dataclass(frozen=True)
class DrainTime:
    """Seconds of each part, in their order. Together they are --drain-timeout."""

    work: float
    """What is in flight may finish."""
    closing: float
    """Workers tell those whose requests are cut, and end."""
    ending: float
    """Launched servers end; 0 where there are none."""

    @classmethod
    def of(cls, timeout: float, *, launches: bool) -> "DrainTime":
        """Of a --drain-timeout in seconds. launches: whether there are servers to end."""
        closing = min(_CLOSING_S, timeout / 3)
        ending = min(SERVERS_END_S, timeout / 4) if launches else 0.0
        return cls(timeout - closing - ending, closing, ending)

    @property
    def killing(self) -> float:
        """Of `ending`, what is kept for killing servers that don't end by themselves."""
        return self.ending / 5
