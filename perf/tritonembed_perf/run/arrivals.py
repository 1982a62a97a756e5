"""When the requests of an open loop are sent."""

import random
from collections.abc import Iterator


def poisson_arrivals(rate: float, rng: random.Random) -> Iterator[float]:
    """Seconds after the start, without end: a Poisson process of `rate` arrivals a second.

    Several processes with a share of the rate each make up one Poisson process of the whole rate.
    """
    time = 0.0
    while True:
        time += rng.expovariate(rate)
        yield time
