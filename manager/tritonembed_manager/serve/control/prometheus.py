"""What the parent has to do for the workers' Prometheus metrics, which live in files that all of them share."""

from pathlib import Path


def mark_dead(pid: int, folder: Path) -> None:
    """A worker has ended: its gauges no longer count, its counters still do."""
    try:
        from prometheus_client import multiprocess
    except ImportError:
        return
    multiprocess.mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
