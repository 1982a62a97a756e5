"""Memory of a server and all that it started."""

from pathlib import Path


def server_memory_mib(pid: int) -> float:
    """PSS of the process and its descendants, and Triton's regions in /dev/shm that are theirs, in MiB.

    PSS (proportional set size) counts a page that n processes share as 1/n in each, so the sum counts it once. Pages of
    /dev/shm that are mapped are in it already; what is not mapped is not memory in use.
    """
    total = 0
    for process in [pid, *_descendants(pid)]:
        rollup = Path(f"/proc/{process}/smaps_rollup")
        try:
            pss = next(line for line in rollup.read_text().splitlines() if line.startswith("Pss:"))
        except (FileNotFoundError, ProcessLookupError, StopIteration):
            continue
        total += int(pss.split()[1])
    return total / 1024


def _descendants(pid: int) -> list[int]:
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        children += [int(child) for child in task.read_text().split()]
    return children + [deeper for child in children for deeper in _descendants(child)]
