"""Gain or noise? Rates are compared by their medians, on a logarithmic scale, against how much they scatter."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

LEAST_GAIN = 0.02
"""A smaller gain is not worth a setting of its own, however sure it is."""
LEAST_SCATTER = 0.005
"""A few runs can agree by chance more closely than the machine does."""
STANDARD_ERRORS = 2.0
"""The difference of two medians counts from so many standard errors on."""
MEDIAN_EFFICIENCY = math.pi / 2
"""Variance of a median over that of a mean, for normal scatter."""


@dataclass(frozen=True)
class Comparison:
    """One candidate against another. Both as ratios: 0.05 is 5 % more tokens a second."""

    gain: float
    needed: float
    """What a gain must exceed to be told from noise."""

    @property
    def is_gain(self) -> bool:
        """Faster, and by more than noise."""
        return self.gain > self.needed

    @property
    def is_promising(self) -> bool:
        """Not told from noise, but worth another attempt."""
        return self.gain > max(LEAST_GAIN, self.needed / 2)

    @property
    def is_clear(self) -> bool:
        """So much faster that one attempt is enough to believe it."""
        return self.gain > 3 * self.needed

    def __str__(self) -> str:
        return f"{self.gain:+.1%} (noise: up to {self.needed:.1%})"


def scatter(groups: Iterable[Sequence[float]]) -> float:
    """Standard deviation of ln(rate) within groups of equal settings, pooled over the groups."""
    squares, freedom = 0.0, 0
    for group in groups:
        if len(group) > 1:
            logs = [math.log(rate) for rate in group]
            mean = statistics.fmean(logs)
            squares += sum((value - mean) ** 2 for value in logs)
            freedom += len(group) - 1
    return max(math.sqrt(squares / freedom) if freedom else 0.0, LEAST_SCATTER)


def compare(
    challenger: Mapping[str, Sequence[float]], holder: Mapping[str, Sequence[float]], sigma: float
) -> Comparison:
    """Rates by load, each load with the same weight. sigma: what `scatter` gave."""
    loads = holder.keys() & challenger.keys()
    if not loads:
        raise ValueError("nothing was measured on both")
    difference = statistics.fmean(
        math.log(statistics.median(challenger[load]) / statistics.median(holder[load])) for load in loads
    )
    variance = sum(1 / len(challenger[load]) + 1 / len(holder[load]) for load in loads) * MEDIAN_EFFICIENCY * sigma**2
    error = math.sqrt(variance) / len(loads)
    return Comparison(math.expm1(difference), max(LEAST_GAIN, math.expm1(STANDARD_ERRORS * error)))
