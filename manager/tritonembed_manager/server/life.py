"""The life of a launched tritonserver, from its start until it ends or a part of it breaks, and its log."""

import asyncio
import os
import re
import signal
import time
from collections import deque
from collections.abc import Awaitable, Callable
from enum import Enum

from tritonembed_manager.server.machine import MemoryKills
from tritonembed_manager.server.process import Process, ServerProcess
from tritonembed_manager.server.process_watch import StartWatch, StubWatch
from tritonembed_protocol.printable import printable

_LOOK_WHILE_STARTING_S = 0.25
_LOOK_EVERY_S = 5.0
_SHOW_EVERY_S, _SHOW_AT_MOST_EVERY_S = 5.0, 1.0
_PATIENCE_WITH_A_FAILED_START_S = 5.0
_READ_BYTES = 65536


class Cause(Enum):
    """Why a life ended."""

    EXIT = "tritonserver ended"
    STUB = "one of its python processes ended"
    NO_STUB = "one of its python processes could not start"
    HUNG = "the start made no progress: another start may"
    OTHER = "its owner found it useless"


class Life:
    """Watches a server that was just started. Main thread, running event loop.

    show: receives the log lines that are worth showing. During the start they are held back, because only the reason
    of a failed start matters.
    doing: receives the current step of the start and its time, at each step and every five seconds.
    is_missed: receives the model of a stub that ended, and how many stubs of the model still run. It returns whether
    the server misses the stub. By default the server misses every stub.
    look_every: seconds between two checks of a ready server's processes, which find new stubs.
    """

    def __init__(
        self,
        server: ServerProcess,
        *,
        show: Callable[[str], None],
        doing: Callable[[str], None] = lambda _: None,
        is_missed: Callable[[str, int], Awaitable[bool]] | None = None,
        look_every: float = _LOOK_EVERY_S,
        everything: bool = False,
    ) -> None:
        self._look_every = look_every
        self._is_missed = is_missed
        self._server = server
        self._show = show
        self._doing = doing
        self._everything = everything
        self._log = ServerLog(everything=everything)
        self._held_back: list[str] = []
        self._ready = False
        self._loop = asyncio.get_running_loop()
        self._stubs = StubWatch(self._stub_ended)
        self._start = StartWatch()
        self._memory = MemoryKills()
        self._began = time.monotonic()
        self._shown: tuple[str, float] = ("", self._began)
        self._over: asyncio.Future[str] = self._loop.create_future()
        self._timers: list[asyncio.TimerHandle] = []
        self._questions: set[asyncio.Task[None]] = set()
        self._lost_while_starting = ""
        self.terminating = False
        self.our_reason: str | None = None
        """The reason that one of our models gave for a failed start."""
        self.cause: Cause | None = None
        """None while the server lives."""

    async def until_over(self) -> str:
        """Wait until the server breaks or ends, and return the reason. Processes may still run: call `end`."""
        output = self._server.output.fileno()
        os.set_blocking(output, False)
        self._loop.add_reader(output, self._read_log)
        self._loop.add_reader(self._server.pidfd, self._ended)
        look = asyncio.create_task(self._look())
        try:
            return await self._over
        finally:
            look.cancel()
            for timer in self._timers:
                timer.cancel()
            for question in self._questions:
                question.cancel()
            self._loop.remove_reader(output)
            self._loop.remove_reader(self._server.pidfd)
            self._stubs.close()

    def became_ready(self) -> None:
        """The server infers: from now on its log is shown, and the end of a stub breaks it."""
        self._stubs.look(self._server.members())
        self._ready = True
        if self._lost_while_starting:
            self.broken(self._lost_while_starting, Cause.STUB)
        self.show_held_back()

    def show_held_back(self) -> None:
        """Show the log lines that were held back during the start."""
        for line in self._held_back:
            self._show(line)
        self._held_back.clear()

    @property
    def step(self) -> str:
        """The current step of the start."""
        return self._log.step

    def last_words(self) -> str:
        """The log line that best explains why the server ended."""
        return self._log.reason()

    def broken(self, why: str, cause: Cause = Cause.OTHER) -> None:
        """End this life, because the server has become useless."""
        if not self._over.done():
            self.cause = cause
            self._over.set_result(why)

    def terminate(self) -> None:
        """Ask the server to finish its requests in flight and end."""
        self.terminating = True
        self._server.terminate()

    async def end(self) -> None:
        """Kill the remaining processes and remove their shared memory. Cancelling does not stop it."""
        # Kill the server itself first: its requests in flight break at once and fail over to another server.
        if self._server.exit_status() is None:
            os.kill(self._server.pid, signal.SIGKILL)
        closing = asyncio.ensure_future(asyncio.to_thread(self._server.close))
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            await closing
            raise

    async def _look(self) -> None:
        before = time.monotonic()
        while True:
            members = self._server.members()
            self._stubs.look(members)
            self._memory.look()
            if not self._ready:
                now = time.monotonic()
                self._look_at_the_start(members, now, now - before)
                before = now
                if self._stubs.never_ran(self._server.ended_children):
                    self._read_log()
                    why = f"a python process of the server could not start: {self._log.stub_reason()}"
                    self.broken(why, Cause.NO_STUB)
            await asyncio.sleep(self._look_every if self._ready else _LOOK_WHILE_STARTING_S)

    def _look_at_the_start(self, members: list[Process], now: float, passed: float) -> None:
        step, (shown, at) = self._log.step, self._shown
        if now - at >= (_SHOW_EVERY_S if step == shown else _SHOW_AT_MOST_EVERY_S):
            self._shown = step, now
            self._doing(f"{step} ({now - self._began:.0f} s)")
        why = self._start.look(members, passed, logged=self._log.size, models=self._stubs.watched)
        if why is not None and not self.terminating:
            self.broken(f"{why}; it was {step}", Cause.HUNG)

    def _stub_ended(self, pid: int) -> None:
        model = self._stubs.forget(pid)
        why = f"a python process of the model {model!r} died (pid {pid}){self._memory.hint()}"
        if self.terminating:
            return
        if not self._ready:
            # A server that can't start ends its other stubs, then itself. Wait for that: then its log has the reason.
            self._lost_while_starting = self._lost_while_starting or why
            later = self._loop.call_later(_PATIENCE_WITH_A_FAILED_START_S, self._start_failed, why)
            self._timers.append(later)
        elif self._is_missed is None:
            self.broken(why, Cause.STUB)
        else:
            question = asyncio.create_task(self._break_if_missed(model, why))
            self._questions.add(question)
            question.add_done_callback(self._questions.discard)

    def _start_failed(self, why: str) -> None:
        """A stub ended, and the server waits for other stubs, which still load. The failed stub may have a reason."""
        self._read_log()
        self.our_reason = self._log.our_reason()
        self.broken(self.our_reason or why, Cause.STUB)

    async def _break_if_missed(self, model: str, why: str) -> None:
        self._stubs.look(self._server.members())
        running = sum(other == model for other in self._stubs.watched.values())
        if self._is_missed is not None and await self._is_missed(model, running):
            self.broken(why, Cause.STUB)

    def _ended(self) -> None:
        self._read_log()
        self._loop.remove_reader(self._server.pidfd)
        status = self._server.exit_status()
        how = f"signal {-status}" if status is not None and status < 0 else f"exit code {status}"
        if self._ready:
            self.broken(f"tritonserver ended by itself ({how}){self._memory.hint()}", Cause.EXIT)
            return
        self.our_reason = self._log.our_reason()
        why = f"tritonserver did not start ({how}{self._memory.hint()}): {self._log.reason()}"
        self.broken(self.our_reason or why, Cause.EXIT)

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
        self._loop.remove_reader(self._server.output.fileno())


OUR_MARKER = "tritonembed: "
"""Prefix of our python models' own log lines."""

_STEP = re.compile(rf"^{OUR_MARKER}\S+: starting: (.+)$")
"""The engine's lines about the steps of an instance's start."""
_LISTENS = "Started GRPCInferenceService"
_TRITON_LINE = re.compile(r'^([IWEF])\d{4} [\d:.]+ \d+ \S+\] "?(.*?)"?$')
# vLLM's errors. Its warnings are a page of advice at every start.
_PYTHON_ERROR = re.compile(r"^(?:\([^)]*\) *)?(ERROR|CRITICAL)\b")
_STACK = re.compile(r"^ *\d+# ")
"""A stack frame that tritonserver logs when a signal ends it: an address, and the path of its program."""
_KEPT_LINES = 200
# Logged by every tritonserver that runs without a GPU.
_NOISE = (
    "CudaDriverHelper has not been initialized",
    "CUDA driver version is insufficient",
    "no pinned memory pool, falling back",
)


class ServerLog:
    """Splits the log into lines, returns the lines to show and keeps the last ones for `reason`.

    everything: show all lines; otherwise only those for which `is_worth_showing` is true.
    """

    def __init__(self, *, everything: bool = False) -> None:
        self._everything = everything
        self._unfinished = b""
        self._last: deque[str] = deque(maxlen=_KEPT_LINES)
        self.step = "starting tritonserver"
        """The last step of the start in the log."""
        self.size = 0
        """Bytes received so far."""

    def take(self, data: bytes) -> list[str]:
        """Receive bytes of the log. Returns the lines to show among those that `data` completes."""
        self.size += len(data)
        *lines, self._unfinished = (self._unfinished + data).split(b"\n")
        texts = [printable(line.decode(errors="replace")) for line in lines]
        self._last.extend(text for text in texts if text)
        for text in texts:
            if (found := _STEP.match(text)) is not None:
                self.step = found.group(1)
            elif _LISTENS in text:
                self.step = "waiting for its first vectors"
        if self._everything:
            return texts
        return [_first_line(text) for text in texts if is_worth_showing(text)]

    def our_reason(self) -> str | None:
        """The reason that one of our models gave for a failed start; None if no model gave a reason."""
        for line in self._last:
            triton = _TRITON_LINE.match(line)
            if triton and triton.group(1) == "E" and OUR_MARKER in line:
                return _first_line(triton.group(2)).partition(OUR_MARKER)[2]
        return None

    def stub_reason(self) -> str:
        """The error of the shell or the dynamic linker for a python process that could not start, without paths."""
        others = [line for line in self._last if not _TRITON_LINE.match(line)]
        words = others[-1].split() if others else []
        return " ".join(word for word in words if not word.startswith("/")) or "no reason is known"

    def reason(self) -> str:
        """The log line that best explains why the server ended."""
        errors = [
            found.group(2) for line in self._last if (found := _TRITON_LINE.match(line)) and found.group(1) in "EF"
        ]
        errors = [error for error in errors if not any(noise in error for noise in _NOISE)]
        failed = [error for error in errors if error.startswith("failed to load")]
        if failed or errors:
            return _first_line((failed or errors)[0])
        lines = [line for line in self._last if _STACK.match(line) is None]
        return lines[-1] if lines else "it logged nothing"


def is_worth_showing(line: str) -> bool:
    """Whether a line is a warning or an error of Triton, an error of vLLM, or our own."""
    if any(noise in line for noise in _NOISE) or _STEP.match(line) is not None:
        return False
    triton = _TRITON_LINE.match(line)
    if triton:
        return triton.group(1) != "I" or OUR_MARKER in line
    return line.startswith(OUR_MARKER) or _PYTHON_ERROR.match(line) is not None


def _first_line(message: str) -> str:
    # Triton writes a message's line breaks as the two characters \n.
    return message.split("\\n")[0].strip()
