"""A launched server: a Triton server that the manager starts, and restarts if it breaks."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tritonembed_manager.router.control.discovery import Address
from tritonembed_manager.router.control.health import Wait, event_or_time
from tritonembed_manager.router.control.plan import VersionPlan
from tritonembed_manager.router.control.registry import RegisteredServer, UpstreamRegistry
from tritonembed_manager.router.control.restarts import RestartLimits, Restarts
from tritonembed_manager.router.interfaces import ServerState
from tritonembed_manager.router.log import log
from tritonembed_manager.server.life import Cause, Life
from tritonembed_manager.server.process import ServerProcess
from tritonembed_manager.server.run_folder import new_region_prefix


@dataclass(frozen=True)
class LaunchSpec:
    """How to start a server. command: makes the command line from a prefix for shared-memory regions.

    startup_timeout: seconds.
    """

    command: Callable[[str], Sequence[str]]
    environment: Mapping[str, str]
    startup_timeout: float
    limits: RestartLimits
    log_everything: bool = False
    home: Path | None = None
    """The working directory of the process."""
    keep_open: Sequence[int] = ()
    """Descriptors that the process inherits."""


@dataclass(frozen=True)
class PreparedServer:
    """A server that is ready to be launched. release: frees its ports and folders, once it has ended."""

    id: str
    spec: LaunchSpec
    address: Address
    replicas: int
    version: VersionPlan
    max_length: int | None = None
    """Tokens of the longest text; None if it is not known."""
    release: Callable[[], None] = lambda: None
    adapters: Mapping[str, str] = field(default_factory=dict)
    """Their digests, by name."""


class LaunchedServer:
    """Keeps a server running. Run `run` as a task; cancelling the task ends the server."""

    def __init__(
        self,
        spec: LaunchSpec,
        registry: UpstreamRegistry,
        upstream: RegisteredServer,
        *,
        clock: Callable[[], float] = time.monotonic,
        start: Callable[..., ServerProcess] = ServerProcess,
        pause: Wait = event_or_time,
    ) -> None:
        self._spec = spec
        self._registry = registry
        self._upstream = upstream
        self._clock = clock
        self._start = start
        self._pause = pause
        self._stop = asyncio.Event()
        self._forgiven = asyncio.Event()
        self._dying = False
        """Whether the server has died and its death is not counted yet."""
        self._excused = False
        """Whether that death is forgiven and does not count."""
        self._restarts = Restarts(spec.limits)
        self._life: Life | None = None
        self._was_ready = False
        self.failed_first_start = asyncio.Event()
        """Set when the first start failed."""
        self.our_reason: str | None = None
        """The reason why a model of this project could not start. Another start would fail as well."""
        self.first_failure = ""
        """The reason why the first start failed."""

    @property
    def upstream(self) -> RegisteredServer:
        """The server's entry in the registry."""
        return self._upstream

    async def run(self) -> None:
        """Start the server, and restart it if it breaks. After `terminate` or `retire`, return once it has ended.

        A server that broke too often stays down until one of its deaths is forgiven.
        """
        while True:
            why = await self._live()
            if why is None:
                return
            self._forgiven.clear()
            delay = self._restarts.again() if self._excused else self._restarts.died(self._clock())
            self._dying = self._excused = False
            if delay is None:
                limits = self._spec.limits
                self.failed_first_start.set()
                note = f"it broke {limits.limit + 1} times in {limits.window:g} s and stays down: {why}"
                self._registry.down(self._upstream, ServerState.FAILED, note)
                await self._forgiven.wait()
                if self._stop.is_set():
                    return
                delay = self._restarts.again()
            again = "starts again" + (f" in {delay:g} s" if delay else "")
            self._upstream.restarts = self._restarts.count
            self._registry.down(self._upstream, ServerState.UNHEALTHY, f"{why}; {again}")
            if not self._stop.is_set():
                await self._pause(self._stop, delay)
            if self._stop.is_set():
                return

    def upstream_changed(self) -> None:
        """To be called when the server's state may have changed. A server that answers with vectors has started."""
        infers = self._upstream.state in (ServerState.READY, ServerState.REFUSED)
        if self._life is not None and not self._was_ready and infers:
            self._was_ready = True
            self._life.became_ready()

    def broken(self, why: str) -> None:
        """Restart the server, because checks found it broken."""
        if self._life is not None:
            self._life.broken(why)

    def forgive(self) -> None:
        """Don't count the last death toward FAILED: its cause was a request that is refused from now on."""
        if self._dying:
            self._excused = True
        else:
            self._restarts.forgive()
            self._forgiven.set()

    def retire(self) -> None:
        """Let the server run on, but never restart it."""
        self._stop.set()
        self._forgiven.set()

    def terminate(self) -> None:
        """Ask the server to end. `run` returns once it has ended."""
        self.retire()
        if self._life is not None:
            self._life.terminate()

    async def _live(self) -> str | None:
        """Run the server once. Returns the reason why it ended; None if `terminate` was called."""
        upstream, spec = self._upstream, self._spec
        prefix = new_region_prefix()
        self._was_ready = False
        upstream.doing = ""
        self._registry.down(upstream, ServerState.STARTING, "")
        server = self._start(spec.command(prefix), spec.environment, prefix, home=spec.home, keep_open=spec.keep_open)
        log("server_launched", f"starting, gRPC at {upstream.address} (pid {server.pid})", server=upstream.id)
        life = self._life = Life(server, show=self._show, doing=self._doing, everything=spec.log_everything)
        timeout = asyncio.get_running_loop().call_later(spec.startup_timeout, self._check_startup)
        try:
            why = await life.until_over()
            if life.terminating:
                return None
            self._dying = True
            # Before the slow cleanup, because workers must know at once.
            self._registry.down(upstream, ServerState.UNHEALTHY, why)
            if not self._was_ready:
                self.our_reason = life.our_reason
                self.first_failure = self.first_failure or why
                # If a first start hangs, the next may still succeed.
                if life.cause is not Cause.HUNG or self._restarts.count:
                    self.failed_first_start.set()
            return why
        finally:
            self._life = None
            timeout.cancel()
            await life.end()

    def _check_startup(self) -> None:
        if not self._was_ready:
            limit = f"{self._spec.startup_timeout:g} s (--startup-timeout)"
            self.broken(f"not ready after {limit}: {self._upstream.why or 'no answer yet'}")

    def _doing(self, step: str) -> None:
        if self._upstream.state is ServerState.STARTING:
            self._upstream.doing = step
            self._registry.set_state(self._upstream, ServerState.STARTING, step)
            log("server_starting", step, server=self._upstream.id)

    def _show(self, line: str) -> None:
        log("tritonserver", line, server=self._upstream.id)
