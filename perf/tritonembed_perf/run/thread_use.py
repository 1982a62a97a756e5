"""How busy the threads of this process are (Linux)."""

import time
from pathlib import Path

from tritonembed_perf.run.job import ThreadUse

TASKS = Path("/proc/self/task")
NANOSECONDS = 1e9


class UseMeter:
    """From its making to `read`."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._cpu = time.process_time()
        self._threads = _run_and_wait()

    def read(self) -> ThreadUse:
        """What this process used since then."""
        wall = max(time.perf_counter() - self._began, 1e-9)
        used = [seconds - self._threads.get(thread, 0.0) for thread, seconds in _run_and_wait().items()]
        return ThreadUse(time.process_time() - self._cpu, max(used, default=0.0) / wall)


def _run_and_wait() -> dict[str, float]:
    """Seconds that each thread ran or stood in a core's queue: a thread that never sleeps has no time to spare."""
    seconds = {}
    for task in TASKS.glob("*"):
        try:
            ran, waited, _ = (task / "schedstat").read_text().split()
        except (OSError, ValueError):
            continue
        seconds[task.name] = (int(ran) + int(waited)) / NANOSECONDS
    return seconds
