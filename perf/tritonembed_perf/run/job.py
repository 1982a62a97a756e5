"""What a client process is given, and what it hands back."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tritonembed_perf.run.checks import AnswerCheck
from tritonembed_perf.run.wire import WireProtocol


@dataclass(frozen=True)
class Work:
    """Requests that can be sent: payloads, and the sentences and tokens of each."""

    protocol: WireProtocol
    payloads: tuple[bytes, ...]
    sentences: int
    tokens: tuple[int, ...]
    check: AnswerCheck


@dataclass(frozen=True)
class Load:
    """How they are sent, by all processes together or (share) by one of them.

    Closed loop: `concurrency` in flight. Open loop: `rate` a second, at random moments, whatever comes back.
    Either `requests` are measured, or those of `duration` seconds. warm_up: seconds before that, not measured.
    """

    concurrency: int | None
    rate: float | None
    requests: int | None
    duration: float | None
    warm_up: float
    timeout: float
    seed: int

    def shares(self, processes: int) -> list["Load"]:
        """One for each process."""

        def part(total: int | None, number: int) -> int | None:
            return None if total is None else total // processes + (number < total % processes)

        return [
            Load(
                part(self.concurrency, number),
                None if self.rate is None else self.rate / processes,
                part(self.requests, number),
                self.duration,
                self.warm_up,
                self.timeout,
                self.seed * 1000 + number,
            )
            for number in range(processes)
        ]


@dataclass(frozen=True)
class ThreadUse:
    """A process over the measured time. busy: of its busiest thread, the share of time that it ran or waited to run."""

    cpu_seconds: float
    busy: float


@dataclass
class Part:
    """What one process saw, or all of them. finished: moments on the machine's monotonic clock; latencies: seconds.

    late: seconds between the moment a request of an open loop was due and the moment it was sent.
    faults: what was wrong with answers, a few of them in words, all of them counted in `wrong`.
    """

    finished: npt.NDArray[np.float64]
    latencies: npt.NDArray[np.float64]
    late: npt.NDArray[np.float64]
    tokens: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    wrong: int = 0
    faults: list[str] = field(default_factory=list)
    compared: int = 0
    use: tuple[ThreadUse, ...] = ()
