"""What a load came to."""

from dataclasses import dataclass

import numpy as np

from tritonembed_perf.run.job import Load, Part

SATURATED = 0.9
"""A thread that ran, or waited for a core, for more than this share of the time is a limit of its own."""


@dataclass(frozen=True)
class Outcome:
    """seconds: of the measured time. part: what all client processes saw in it."""

    part: Part
    seconds: float

    @staticmethod
    def of(part: Part, begin: float, end: float, load: Load) -> "Outcome":
        """begin, end: of the measured time, on the machine's monotonic clock.

        Where a number of requests was asked for it lasted until the last answer; in an open loop too, because what was
        due in the measured time was also waited for.
        """
        last = float(part.finished.max()) if len(part.finished) else end
        if load.rate is not None:
            return Outcome(part, max(last, min(end, begin + (load.duration or 0))) - begin)
        return Outcome(part, max((last if load.requests is not None else end) - begin, 1e-9))

    @property
    def requests(self) -> int:
        """That were answered."""
        return len(self.part.latencies)

    @property
    def is_telling(self) -> bool:
        """Whether anything came back: answers or errors in the measured time, or a wrong answer at any time."""
        return bool(self.requests or self.part.errors or self.part.wrong)

    @property
    def requests_per_second(self) -> float:
        """Answered."""
        return self.requests / self.seconds if self.seconds > 0 else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Of the answered requests, counted by the tokenizer."""
        return self.part.tokens / self.seconds if self.seconds > 0 else 0.0

    def latency_ms(self, percent: float) -> float:
        """A percentile; 100 is the maximum."""
        return float(np.percentile(self.part.latencies, percent)) * 1e3 if self.requests else float("nan")

    @property
    def late_p99_ms(self) -> float:
        """How late an open loop sent its requests."""
        return float(np.percentile(self.part.late, 99)) * 1e3 if len(self.part.late) else 0.0

    @property
    def client_cpu_seconds(self) -> float:
        """Of all client processes."""
        return sum(use.cpu_seconds for use in self.part.use)

    @property
    def busiest_client(self) -> float:
        """The share of time in which the busiest thread of any client process ran or waited for a core."""
        return max((use.busy for use in self.part.use), default=0.0)

    @property
    def is_client_saturated(self) -> bool:
        """Whether the client may have been what was measured."""
        return self.busiest_client >= SATURATED
