"""Asks one server again and again whether it still gives its vectors, and at once when somebody doubts it.

A late answer is no failure of a server that computes: its counters grow, or it answers requests.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tritonembed_manager.serve.control.fingerprint import Vectors
from tritonembed_manager.serve.control.probe import Probe, ProbeError
from tritonembed_manager.serve.control.progress import Progress
from tritonembed_manager.serve.control.roster import Member, Roster
from tritonembed_manager.serve.model import ServerState

WHILE_STARTING_S = 0.2
WHILE_OUT_S = 1.0
LATE_S = 1.0
"""An answer that takes longer (or a quarter of what is left to it) makes the server's progress matter."""
FAILURES_OF_A_HUNG_SERVER = 3
"""Checks in a row after which a server that was launched here is started again."""
REFUSALS_OF_A_USELESS_SERVER = 10
"""A loaded model that refuses good sentences so often will not get better."""

Wait = Callable[[asyncio.Event, float], Awaitable[None]]


@dataclass(frozen=True)
class HealthSettings:
    """Seconds: between two checks of a healthy server, and for the answer to one."""

    interval: float = 2.0
    timeout: float = 10.0


async def event_or_time(event: asyncio.Event, seconds: float | None) -> None:
    """Wait for the event, but not longer than that."""
    # Not wait_for: before Python 3.12 it loses a cancellation that comes together with the event.
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait([waiting], timeout=seconds)
    finally:
        waiting.cancel()


class HealthWatch:
    """The checks of one server.

    alive: whether it answered requests since the last call (it is then busy, not sick, when a check is late).
    progress: the other sign of that; it also keeps a launched server from being started again.
    broken: what to do about a launched server that does not recover; gets the reason.
    cleared: gets the id of a server that was doubted when a check finds it well.
    """

    def __init__(
        self,
        roster: Roster,
        member: Member,
        probe: Probe,
        settings: HealthSettings,
        *,
        alive: Callable[[], bool] = lambda: False,
        progress: Progress | None = None,
        broken: Callable[[str], None] | None = None,
        cleared: Callable[[str], None] = lambda _: None,
        wait: Wait = event_or_time,
    ) -> None:
        self._roster = roster
        self._member = member
        self._probe = probe
        self._settings = settings
        self._alive = alive
        self._progress = progress
        self._broken = broken
        self._cleared = cleared
        self._wait = wait
        self._wanted = asyncio.Event()
        self._doubted = False
        self._refusals = 0
        """In a row."""

    def check_now(self) -> None:
        """Don't wait for the next turn: somebody doubts it."""
        self._doubted = True
        self._wanted.set()

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                self._wanted.clear()
                await self.check()
                await self._wait(self._wanted, self._pause())
        finally:
            await self._probe.close()

    async def check(self) -> None:
        """Ask once and tell the roster."""
        member, generation = self._member, self._member.generation
        if member.state is ServerState.FAILED:
            return
        self._alive()
        doubted, self._doubted = self._doubted, False
        try:
            vectors = await self._vectors()
        except ProbeError as error:
            if await self._only_busy(error):
                member.failures = 0
            elif member.generation == generation:
                self._roster.failed(member, error)
                self._give_up_if_useless(error)
            return
        if member.generation != generation:
            return
        if not member.launched and member.state is not ServerState.READY:
            # Whatever was there before it was out: this may be another server at the same address.
            member.replicas = await self._probe.replicas(self._settings.timeout)
        self._refusals = 0
        self._roster.answered(member, vectors)
        if doubted and member.state is ServerState.READY:
            self._cleared(member.id)

    async def _vectors(self) -> Vectors:
        timeout = self._settings.timeout
        asking = asyncio.ensure_future(self._probe.vectors(timeout))
        try:
            if self._progress is not None:
                await asyncio.wait([asking], timeout=min(LATE_S, timeout / 4))
                if not asking.done():
                    await self._progress.mark()
            return await asking
        finally:
            asking.cancel()

    async def _only_busy(self, error: ProbeError) -> bool:
        state = self._member.state
        if state is ServerState.READY and (error.busy or (error.timed_out and self._alive())):
            return True
        if self._progress is None or not error.timed_out or state not in (ServerState.READY, ServerState.UNHEALTHY):
            return False
        return await self._progress.grew()

    def _give_up_if_useless(self, error: ProbeError) -> None:
        member = self._member
        self._refusals = self._refusals + 1 if error.answered else 0
        if self._broken is None or error.busy:
            return
        if member.state is ServerState.STARTING:
            if self._refusals >= REFUSALS_OF_A_USELESS_SERVER:
                self._refusals = 0
                self._broken(f"the server started, but an inference fails: {error.why}")
        elif member.failures >= FAILURES_OF_A_HUNG_SERVER:
            self._broken(f"{member.failures} checks in a row failed: {error.why}")

    def _pause(self) -> float:
        state = self._member.state
        if state is ServerState.READY:
            return self._settings.interval
        return WHILE_STARTING_S if state is ServerState.STARTING else min(WHILE_OUT_S, self._settings.interval)
