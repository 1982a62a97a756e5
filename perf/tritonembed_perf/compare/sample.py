"""One peer under one load, once: what came of it."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sample:
    """What came back in one measurement. Latencies in milliseconds; of a program in process those of its calls.

    errors: requests that failed; wrong: answers that were; faults: both in words. client_cores: CPU of the clients.
    """

    tokens_per_second: float
    requests_per_second: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    errors: int
    wrong: int
    faults: tuple[str, ...]
    client_cores: float
    client_saturated: bool

    @property
    def is_sound(self) -> bool:
        """Whether every request was answered, and rightly."""
        return not (self.errors or self.wrong) and self.tokens_per_second > 0

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> "Sample":
        """Of what `dataclasses.asdict` made. Raises TypeError and KeyError for anything else."""
        return Sample(**{**fields, "faults": tuple(fields["faults"])})


def median(samples: Sequence[Sample]) -> Sample:
    """The sample of the median tokens/s; of an even number the lower of the two."""
    middle = statistics.median_low([sample.tokens_per_second for sample in samples])
    return next(sample for sample in samples if sample.tokens_per_second == middle)
