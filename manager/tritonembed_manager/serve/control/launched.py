"""A Triton server that is started here, and started again when it breaks."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tritonembed_manager.serve.control.health import Wait, event_or_time
from tritonembed_manager.serve.control.life import Life
from tritonembed_manager.serve.control.logs import log
from tritonembed_manager.serve.control.restarts import RestartLimits, Restarts
from tritonembed_manager.serve.control.roster import Member, Roster
from tritonembed_manager.serve.model import ServerState
from tritonembed_manager.server_process import ServerProcess
from tritonembed_manager.shared_memory import new_region_prefix


@dataclass(frozen=True)
class LaunchSpec:
    """How to start it. command: makes the command line from a prefix for its shared-memory regions."""

    command: Callable[[str], Sequence[str]]
    environment: Mapping[str, str]
    startup_timeout: float
    limits: RestartLimits = field(default_factory=RestartLimits)
    log_everything: bool = False


class LaunchedServer:
    """Keeps one server running. `run` it as a task; when that is cancelled the server is ended."""

    def __init__(
        self,
        spec: LaunchSpec,
        roster: Roster,
        member: Member,
        *,
        clock: Callable[[], float] = time.monotonic,
        start: Callable[..., ServerProcess] = ServerProcess,
        pause: Wait = event_or_time,
    ) -> None:
        self._spec = spec
        self._roster = roster
        self._member = member
        self._clock = clock
        self._start = start
        self._pause = pause
        self._stop = asyncio.Event()
        self._restarts = Restarts(spec.limits)
        self._life: Life | None = None
        self._was_ready = False
        self.failed_first_start = asyncio.Event()
        """Set when its first start failed."""
        self.our_reason: str | None = None
        """Why one of our own models could not start: no other start will do better."""
        self.first_failure = ""
        """Why its first start failed."""

    @property
    def member(self) -> Member:
        """How it stands."""
        return self._member

    async def run(self) -> None:
        """Start it, and start it again when it breaks, until it broke too often or `terminate` was called."""
        while True:
            why = await self._live()
            if why is None:
                return
            delay = self._restarts.died(self._clock())
            if delay is None:
                limits = self._spec.limits
                note = f"it broke {limits.limit + 1} times in {limits.window:g} s and stays down: {why}"
                self._roster.down(self._member, ServerState.FAILED, note)
                return
            again = "starts again" + (f" in {delay:g} s" if delay else "")
            self._member.restarts = self._restarts.count
            self._roster.down(self._member, ServerState.UNHEALTHY, f"{why}; {again}")
            if not self._stop.is_set():
                await self._pause(self._stop, delay)
            if self._stop.is_set():
                return

    def member_changed(self) -> None:
        """To be called when the member's state may be another one: a server that infers has started."""
        infers = self._member.state in (ServerState.READY, ServerState.REFUSED)
        if self._life is not None and not self._was_ready and infers:
            self._was_ready = True
            self._life.became_ready()

    def broken(self, why: str) -> None:
        """Checks found it useless: end it, and start it again."""
        if self._life is not None:
            self._life.broken(why)

    def retire(self) -> None:
        """It goes on, but is not started again."""
        self._stop.set()

    def terminate(self) -> None:
        """Ask it to end; `run` returns when it has."""
        self.retire()
        if self._life is not None:
            self._life.terminate()

    async def _live(self) -> str | None:
        """One life; why it ended, None when it was told to."""
        member, spec = self._member, self._spec
        prefix = new_region_prefix()
        self._was_ready = False
        self._roster.down(member, ServerState.STARTING, "")
        server = self._start(spec.command(prefix), spec.environment, prefix)
        log("server_launched", f"starting, gRPC at {member.address} (pid {server.pid})", server=member.id)
        life = self._life = Life(server, show=self._show, everything=spec.log_everything)
        timeout = asyncio.get_running_loop().call_later(spec.startup_timeout, self._check_startup)
        try:
            why = await life.until_over()
            if life.terminating:
                return None
            # Before the slow part: workers must know at once.
            self._roster.down(member, ServerState.UNHEALTHY, why)
            if not self._was_ready:
                self.our_reason = life.our_reason
                self.first_failure = self.first_failure or why
                self.failed_first_start.set()
            return why
        finally:
            self._life = None
            timeout.cancel()
            await asyncio.shield(life.end())

    def _check_startup(self) -> None:
        if not self._was_ready:
            limit = f"{self._spec.startup_timeout:g} s (--startup-timeout)"
            self.broken(f"not ready after {limit}: {self._member.why or 'no answer yet'}")

    def _show(self, line: str) -> None:
        log("tritonserver", line, server=self._member.id)
