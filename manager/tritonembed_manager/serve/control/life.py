"""One life of a launched tritonserver: from its start until something of it breaks."""

import asyncio
import os
import selectors
import signal
from collections.abc import Callable

from tritonembed_manager.serve.control.loop_selector import LoopSelector
from tritonembed_manager.server_log import ServerLog
from tritonembed_manager.server_process import ServerProcess
from tritonembed_manager.stubs import StubWatch

_LOOK_WHILE_STARTING_S = 0.25
_LOOK_EVERY_S = 5.0
_PATIENCE_WITH_A_FAILED_START_S = 5.0
_READ_BYTES = 65536


class Life:
    """Watches a server that was just started. Main thread, running event loop.

    show: gets the lines of its log that are worth showing; while it starts they are held back, since of a start that
    fails only the reason counts.
    """

    def __init__(self, server: ServerProcess, *, show: Callable[[str], None], everything: bool = False) -> None:
        self._server = server
        self._show = show
        self._everything = everything
        self._log = ServerLog(everything=everything)
        self._held_back: list[str] = []
        self._ready = False
        self._selector = LoopSelector(self._event)
        self._stubs = StubWatch(self._selector)
        self._over: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._timers: list[asyncio.TimerHandle] = []
        self.terminating = False
        self.our_reason: str | None = None
        """Why one of our own models could not start, in its words."""

    async def until_over(self) -> str:
        """Wait until it is broken or has ended; the reason. Its process may still run: `end` it."""
        output = self._server.output.fileno()
        os.set_blocking(output, False)
        self._selector.register(output, selectors.EVENT_READ, ("log", 0))
        self._selector.register(self._server.pidfd, selectors.EVENT_READ, ("exit", 0))
        look = asyncio.create_task(self._look())
        try:
            return await self._over
        finally:
            look.cancel()
            for timer in self._timers:
                timer.cancel()
            self._selector.unregister(output)
            self._selector.unregister(self._server.pidfd)
            self._stubs.close()
            self._selector.close()

    def became_ready(self) -> None:
        """It infers: from now on its lines are shown, and the death of a stub is its own."""
        self._stubs.look(self._server.members())
        self._ready = True
        for line in self._held_back:
            self._show(line)
        self._held_back.clear()

    def broken(self, why: str) -> None:
        """Somebody else found it useless."""
        if not self._over.done():
            self._over.set_result(why)

    def terminate(self) -> None:
        """Ask it to finish and end."""
        self.terminating = True
        self._server.terminate()

    async def end(self) -> None:
        """Kill what is left of it and remove its shared memory."""
        # The server itself first: what is in flight there breaks, and is sent to another one, right now.
        if self._server.exit_status() is None:
            os.kill(self._server.pid, signal.SIGKILL)
        await asyncio.to_thread(self._server.close)

    async def _look(self) -> None:
        while True:
            self._stubs.look(self._server.members())
            await asyncio.sleep(_LOOK_EVERY_S if self._ready else _LOOK_WHILE_STARTING_S)

    def _event(self, news: tuple[str, int]) -> None:
        kind, pid = news
        if kind == "log":
            self._read_log()
        elif kind == "exit":
            self._ended()
        else:
            self._stub_ended(pid)

    def _stub_ended(self, pid: int) -> None:
        why = f"a python process of the model {self._stubs.forget(pid)!r} died (pid {pid})"
        if self._ready and not self.terminating:
            self.broken(why)
        elif not self._ready:
            # A server that can't start ends its other stubs, then itself, and its log says why: wait for that.
            later = asyncio.get_running_loop().call_later(_PATIENCE_WITH_A_FAILED_START_S, self.broken, why)
            self._timers.append(later)

    def _ended(self) -> None:
        self._read_log()
        self._selector.unregister(self._server.pidfd)
        status = self._server.exit_status()
        how = f"signal {-status}" if status is not None and status < 0 else f"exit code {status}"
        if self._ready:
            self.broken(f"tritonserver ended by itself ({how})")
            return
        self.our_reason = self._log.our_reason()
        self.broken(self.our_reason or f"tritonserver did not start ({how}): {self._log.reason()}")

    def _read_log(self) -> None:
        try:
            while data := os.read(self._server.output.fileno(), _READ_BYTES):
                lines = self._log.take(data)
                if self._ready or self._everything:
                    for line in lines:
                        self._show(line)
                else:
                    self._held_back += lines
        except BlockingIOError:
            return
        self._selector.unregister(self._server.output.fileno())
