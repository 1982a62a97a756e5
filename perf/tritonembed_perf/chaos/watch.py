"""Watches the service while it is harmed: recoveries, restarts without a harm, memory of the workers."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from tritonembed_perf.chaos.footprint import largest_worker_mib
from tritonembed_perf.chaos.killers import Killer
from tritonembed_perf.chaos.ledger import HELPER, SERVER, WORKER, Harms, Ledger
from tritonembed_perf.chaos.service import Service, all_ready

_EVERY_S = 0.25
_LEAST_S = 1.0
"""Least seconds of a harm: the manager needs time to see it."""
_NOTICED_S = 60.0
"""Seconds to wait for the restart after a kill. If none follows, an earlier restart was this kill's, too."""


class Watch:
    """attacks: returns the names of the latest attacks, for findings about restarts without a harm."""

    def __init__(
        self, service: Service, harms: Harms, killer: Killer, ledger: Ledger, attacks: Callable[[], str]
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
