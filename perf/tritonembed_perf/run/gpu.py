"""How busy the GPUs are and how much memory is in use, by nvidia-smi."""

import statistics
import subprocess
import threading
from dataclasses import dataclass

PERIOD_S = 0.5
QUERY = ("nvidia-smi", "--query-gpu=name,utilization.gpu,memory.used", "--format=csv,noheader,nounits")


@dataclass(frozen=True)
class GpuUse:
    """One GPU. busy_percent: median share of time in which a kernel ran; memory_mib: the most that was in use."""

    name: str
    busy_percent: float
    memory_mib: int


class GpuMeter:
    """Samples from `start` to `stop`; where there is no GPU it finds none."""

    def __init__(self) -> None:
        self._samples: list[list[tuple[str, int, int]]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gpu", daemon=True)

    def start(self) -> None:
        """Begin to sample."""
        self._thread.start()

    def stop(self) -> list[GpuUse]:
        """One entry a GPU; empty where there is none."""
        self._stop.set()
        self._thread.join()
        return [
            GpuUse(series[0][0], statistics.median(busy for _, busy, _ in series), max(used for *_, used in series))
            for series in zip(*self._samples, strict=False)
        ]

    def _run(self) -> None:
        while not self._stop.wait(PERIOD_S):
            try:
                answer = subprocess.run(QUERY, capture_output=True, text=True, timeout=10, check=True).stdout
                self._samples.append([_parse(line) for line in answer.splitlines()])
            except (OSError, subprocess.SubprocessError, ValueError):
                return


def _parse(line: str) -> tuple[str, int, int]:
    name, busy, used = line.rsplit(", ", 2)
    return name, int(busy), int(used)
