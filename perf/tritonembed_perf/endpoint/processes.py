"""CPU time of a manager's own processes, without the Triton servers that it launched."""

import psutil  # type: ignore[import-untyped]


def manager_cpu_seconds(pid: int) -> float:
    """User and system time of the manager and its workers so far."""
    total = 0.0
    for process in (root := psutil.Process(pid), *root.children(recursive=True)):
        try:
            if "python" in process.name():
                times = process.cpu_times()
                total += times.user + times.system
        except psutil.NoSuchProcess:
            continue
    return total
