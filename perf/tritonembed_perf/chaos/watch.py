"""Watches the service while it is harmed: recoveries, restarts without a harm, and its footprint.

The footprint is memory, descriptors and threads by role, and regions in /dev/shm.
"""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tritonembed_perf.chaos.killers import Killer
from tritonembed_perf.chaos.ledger import HELPER, SERVER, WORKER, CampaignLedger, Harms
from tritonembed_perf.chaos.service import CONVERTER, Service, all_ready

_EVERY_S = 0.25
_LEAST_S = 1.0
"""Least seconds of a harm: the manager needs time to see it."""
_NOTICED_S = 60.0
"""Seconds to wait for the restart after a kill. If none follows, an earlier restart was this kill's, too."""


class Watch:
    """attacks: returns the names of the latest attacks, for findings about restarts without a harm."""

    def __init__(
        self, service: Service, harms: Harms, killer: Killer, ledger: CampaignLedger, attacks: Callable[[], str]
    ) -> None:
        self._service = service
        self._harms = harms
        self._killer = killer
        self._ledger = ledger
        self._attacks = attacks
        self._restarts: dict[str, int] = {}
        self._worker_restarts: int | None = None
        self._without_server: float | None = None
        self.status: dict[str, Any] = {}
        """The latest answer of /status."""

    async def run(self) -> None:
        """Look at the service again and again until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(_EVERY_S)

    async def look(self) -> None:
        """Look at the service once."""
        self._ledger.highest_worker_mib = max(self._ledger.highest_worker_mib, largest_worker_mib(self._service))
        self._note_ends()
        status = await self._service.status()
        if not status:
            return
        self.status = status
        self._count_restarts(status)
        self._note_outage(status)
        self._note_recoveries(status)

    def is_well(self) -> bool:
        """Whether everything was ready at the last look and every harm is over."""
        return all_ready(self.status) and not self._harms.open()

    def _count_restarts(self, status: dict[str, Any]) -> None:
        for server in status["servers"]:
            # Restarts before the first look do not count.
            before = self._restarts.get(server["id"], server["restarts"])
            for _ in range(server["restarts"] - before):
                self._restarted(SERVER, server["id"], server.get("why") or "")
            self._restarts[server["id"]] = server["restarts"]
        restarts = status["workers"]["restarts"]
        for _ in range(restarts - (restarts if self._worker_restarts is None else self._worker_restarts)):
            self._restarted(WORKER, "", "")
        self._worker_restarts = restarts

    def _restarted(self, target: str, id: str, why: str) -> None:
        if self._harms.claim(target, id):
            self._ledger.restarts[target] += 1
            return
        self._ledger.uncaused[target] += 1
        self._ledger.finding(f"{id or 'a worker'} was started again without a harm ({why}); attacks: {self._attacks()}")

    def _note_outage(self, status: dict[str, Any]) -> None:
        now = time.monotonic()
        # /status shows a server as ready until the manager has noticed, seconds later, that its process is stopped.
        stopped = {harm.id for harm in self._harms.all if self._killer.is_stopped(harm.pid)}
        if any(server["state"] == "ready" and server["id"] not in stopped for server in status["servers"]):
            self._without_server = None
            return
        self._harms.outage(self._without_server or now - _EVERY_S, now)
        self._without_server = now

    def _note_ends(self) -> None:
        for harm in self._harms.open():
            if harm.ended is None and not self._killer.is_stopped(harm.pid):
                harm.ended = time.monotonic()

    def _note_recoveries(self, status: dict[str, Any]) -> None:
        if not all_ready(status):
            return
        now = time.monotonic()
        for harm in self._harms.open():
            age = now - harm.began
            is_seen = harm.claimed or harm.target == HELPER or not harm.kind.endswith("killed") or age > _NOTICED_S
            if age > _LEAST_S and is_seen and not self._killer.is_stopped(harm.pid):
                harm.recovered = now


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
