"""How busy the GPU was while something ran."""

import statistics
import subprocess
import threading


class GpuBusy:
    """The share of time in which a kernel ran (NVML's utilization), sampled while the context is open."""

    def __init__(self) -> None:
        self._samples: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "GpuBusy":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def percent(self) -> int | None:
        """The median sample; None without a GPU."""
        return round(statistics.median(self._samples)) if self._samples else None

    def _sample(self) -> None:
        command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        while not self._stop.wait(0.5):
            try:
                said = subprocess.run(command, capture_output=True, text=True, timeout=5).stdout.split()
            except (OSError, subprocess.TimeoutExpired):
                return
            self._samples += [int(said[0])] if said else []
