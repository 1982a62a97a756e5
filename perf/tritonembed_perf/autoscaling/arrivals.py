"""When requests come: Poisson processes whose rate changes, by thinning."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.float64]
"""Seconds from the start, in order; [requests]."""
Rate = Callable[[Times], Times]
"""The rate at each of these times, as a share of the highest; 0 to 1."""


def steady(times: Times) -> Times:
    """The same rate all the time."""
    return np.ones_like(times)


@dataclass(frozen=True)
class Wave:
    """From `low` to 1 and back over `period` seconds, as over a day."""

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
