"""The service's footprint: memory, descriptors and threads by role, and regions in /dev/shm."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

from tritonembed_perf.chaos.service import CONVERTER, WORKER, Service

_SHARED_MEMORY = Path("/dev/shm")
_MIB = 1 << 20


def take_footprint(service: Service) -> dict[str, Any]:
    """PSS in MiB, open descriptors and threads, each by role; number of the regions in /dev/shm, and their MiB."""
    pss: Counter[str] = Counter()
    descriptors: Counter[str] = Counter()
    threads: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for member in service.members():
        folder = Path(f"/proc/{member.process.pid}")
        try:
            pss[member.role] += _pss_kib(folder)
            descriptors[member.role] += len(os.listdir(folder / "fd"))
            threads[member.role] += len(os.listdir(folder / "task"))
        except OSError:
            # The process has just ended.
            continue
        count[member.role] += 1
    regions = own_regions(service)
    return {
        "processes": dict(sorted(count.items())),
        "pss_mib": {role: round(kib / 1024, 1) for role, kib in sorted(pss.items())},
        # Without converters: they start when a large body arrives, and have a limit of their own.
        "pss_mib_in_all": round((sum(pss.values()) - pss[CONVERTER]) / 1024, 1),
        "descriptors": dict(sorted(descriptors.items())),
        "threads": dict(sorted(threads.items())),
        "shm_regions": len(regions),
        "shm_mib": round(sum(_size(path) for path in regions) / _MIB, 2),
    }


def largest_worker_mib(service: Service) -> float:
    """RSS in MiB of the worker that has the most at this moment."""
    sizes = [0.0]
    for member in service.members():
        if member.role == WORKER:
            try:
                pages = int(Path(f"/proc/{member.process.pid}/statm").read_text().split()[1])
            except (OSError, IndexError):
                continue
            sizes.append(pages * os.sysconf("SC_PAGE_SIZE") / _MIB)
    return max(sizes)


def own_regions(service: Service) -> list[Path]:
    """The service's regions in /dev/shm. Their names hold the manager's pid."""
    prefix = f"tritonembed_{service.pid}_"
    return [path for path in _SHARED_MEMORY.iterdir() if path.name.startswith(prefix)]


def growth(start: dict[str, Any], end: dict[str, Any]) -> dict[str, float]:
    """Growth in percent of the start: of PSS in all, of PSS by role, and of the regions' size."""
    grown = {"in all": _percent(start["pss_mib_in_all"], end["pss_mib_in_all"])}
    for role, mib in start["pss_mib"].items():
        grown[role] = _percent(mib, end["pss_mib"].get(role, 0.0))
    grown["/dev/shm"] = _percent(start["shm_mib"], end["shm_mib"])
    return grown


def _percent(start: float, end: float) -> float:
    return round(100 * (end - start) / start, 1) if start else 0.0


def _pss_kib(folder: Path) -> int:
    lines = (folder / "smaps_rollup").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def _size(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except OSError:
        return 0
