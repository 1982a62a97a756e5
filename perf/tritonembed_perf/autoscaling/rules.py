"""Rules by which autoscalers order servers: ours, NVIDIA's recipe, and the use of the processor."""

from dataclasses import dataclass
from math import ceil, inf

from tritonembed_perf.autoscaling.fleet import PERIOD_S, Seen


def _before(seen: list[Seen], seconds: float) -> Seen:
    """The scrape that many seconds before the newest one; the first if that is younger."""
    return seen[max(len(seen) - 1 - round(seconds / PERIOD_S), 0)]


def _rate(new: float, old: float, seconds: float) -> float:
    return (new - old) / seconds if seconds > 0 else 0.0


@dataclass(frozen=True)
class LoadRule:
    """Ours: what comes per second, and what waits; the larger number of servers counts.

    use: seconds of work that come per second and server, `rate(tritonembed_work_seconds_total[1m])`. None: only what
    waits. backlog: seconds of work per server that may wait, `tritonembed_load`. None: only what comes. estimate: the
    work that is shown for a second of work; below 1, servers are taken for faster than they are.
    """

    use: float | None = 0.7
    backlog: float | None = 10.0
    estimate: float = 1.0

    def __call__(self, seen: list[Seen]) -> int:
        """Servers that it wants."""
        newest, old = seen[-1], _before(seen, 60.0)
        comes = self.estimate * _rate(newest.arrived, old.arrived, newest.at - old.at)
        return max(
            ceil(comes / self.use) if self.use else 0,
            ceil(self.estimate * newest.load / self.backlog) if self.backlog else 0,
        )


@dataclass(frozen=True)
class QueueTime:
    """NVIDIA's recipe: the mean time that requests of the last 30 s spent in Triton's queue.

    `avg(delta(nv_inference_queue_duration_us[30s]) / (1 + delta(nv_inference_request_success[30s])))`, averageValue.
    target: seconds. most: the longest wait that Triton's queue can show; the rest is in front of the servers.
    """

    target: float = 0.05
    most: float = inf

    def __call__(self, seen: list[Seen]) -> int:
        """Servers that it wants."""
        newest, old = seen[-1], _before(seen, 30.0)
        mean = (newest.waited - old.waited) / (1 + newest.started - old.started)
        return ceil(newest.ready * min(mean, self.most) / self.target)


@dataclass(frozen=True)
class Use:
    """The share of time in which processors work (nvidia-smi's GPU use, or a CPU's), over the last minute."""

    target: float = 0.8

    def __call__(self, seen: list[Seen]) -> int:
        """Servers that it wants."""
        newest, old = seen[-1], _before(seen, 60.0)
        return ceil(_rate(newest.busy, old.busy, newest.at - old.at) / self.target)
