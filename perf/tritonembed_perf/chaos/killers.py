"""Random kills and stops of the service's own processes, sometimes while another one is still down."""

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from tritonembed_manager.server.process import Process, read_process
from tritonembed_perf.chaos import ledger
from tritonembed_perf.chaos.ledger import Harm, Harms
from tritonembed_perf.chaos.service import CONVERTER, EMBEDDER, TOKENIZER, TRITON, WORKER, Member, Service

VICTIMS = {TRITON: 3, EMBEDDER: 3, TOKENIZER: 2, WORKER: 2, CONVERTER: 1}
"""Roles, and the weight of each in the random choice."""
_TARGETS = {WORKER: ledger.WORKER, CONVERTER: ledger.HELPER}
_STOPS = 0.4
"""Share of the harms that are SIGSTOP."""
_LEFT_STOPPED = 0.5
"""Share of the SIGSTOPs that no SIGCONT follows."""
_STOPPED_S = (0.5, 12.0)
_NOT_WAITING = 0.15
"""Share of the harms that do not wait for recovery from earlier ones. They can hit processes that are starting."""
_PATIENCE_S = 60.0
"""Seconds after which the next harm comes even without recovery from earlier ones."""


class Killer:
    """Sends the signals. pause: about the seconds between two harms."""

    def __init__(self, service: Service, record: Harms, rng: random.Random, pause: float) -> None:
        self._service = service
        self._record = record
        self._rng = rng
        self._pause = pause
        self._stopped: dict[int, Process] = {}
        self._resuming: set[asyncio.Task[None]] = set()

    async def run(self, going: Callable[[], bool]) -> None:
        """Harm processes until `going` returns false; then continue those that are still stopped."""
        # The first harm comes soon, so that a short campaign has one, too.
        await asyncio.sleep(self._rng.uniform(0.5, 1.5))
        while going():
            self._harm()
            await self._wait(going)
        self.resume_all()

    def resume_all(self) -> None:
        """Continue every stopped process."""
        for task in self._resuming:
            task.cancel()
        for process in self._stopped.values():
            _send(process, signal.SIGCONT)
        self._stopped.clear()

    async def _wait(self, going: Callable[[], bool]) -> None:
        impatient = self._rng.random() < _NOT_WAITING
        at_least = time.monotonic() + self._rng.uniform(0.5, 1.5) * self._pause
        at_most = time.monotonic() + _PATIENCE_S
        while going():
            now = time.monotonic()
            is_over = not self._record.open() or impatient or now >= at_most
            if now >= at_least and is_over:
                return
            await asyncio.sleep(0.2)

    def _harm(self) -> None:
        members = self._service.members()
        role = self._rng.choices(list(VICTIMS), list(VICTIMS.values()))[0]
        if role == WORKER and any(harm.target == ledger.WORKER for harm in self._record.open()):
            # With both workers gone nothing listens, which is no fault of the service.
            role = TRITON
        chosen = [member for member in members if member.role == role]
        if not chosen:
            return
        victim = self._rng.choice(chosen)
        if self._rng.random() >= _STOPS:
            self._signal(victim, signal.SIGKILL, "killed")
        elif self._rng.random() < _LEFT_STOPPED:
            self._stop(victim, None)
        else:
            self._stop(victim, self._rng.uniform(*_STOPPED_S))

    def _signal(self, victim: Member, number: signal.Signals, what: str) -> Harm:
        target = _TARGETS.get(victim.role, ledger.SERVER)
        # Recorded before the signal is sent: a request may break in the same moment.
        harm = self._record.add(f"{victim.role} {what}", target, victim.server, victim.process.pid)
        harm.ended = harm.began if number is signal.SIGKILL else None
        _send(victim.process, number)
        return harm

    def _stop(self, victim: Member, seconds: float | None) -> None:
        what = "stopped" if seconds is None else "stopped for a while"
        self._signal(victim, signal.SIGSTOP, what)
        self._stopped[victim.process.pid] = victim.process
        if seconds is not None:
            task = asyncio.ensure_future(self._resume(victim.process, seconds))
            self._resuming.add(task)
            task.add_done_callback(self._resuming.discard)

    async def _resume(self, process: Process, seconds: float) -> None:
        await asyncio.sleep(seconds)
        _send(process, signal.SIGCONT)
        self._stopped.pop(process.pid, None)

    def is_stopped(self, pid: int) -> bool:
        """Whether the process has been stopped here and still lives."""
        process = self._stopped.get(pid)
        return process is not None and _same(process)


def _same(process: Process) -> bool:
    now = read_process(process.pid)
    return now is not None and now.started == process.started and now.alive


def _send(process: Process, number: signal.Signals) -> None:
    """Signal this process, never a later one with the same pid."""
    with suppress(ProcessLookupError):
        handle = os.pidfd_open(process.pid)
        try:
            if _same(process):
                signal.pidfd_send_signal(handle, number)
        finally:
            os.close(handle)
