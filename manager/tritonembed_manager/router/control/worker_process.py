"""A worker process as the parent sees it: its start, its socket, and whether it hangs.

A worker sends a line twice per second. If it is silent, the parent looks at the state of the process.
"""

import asyncio
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tritonembed_engine.stub.child_python import module_command
from tritonembed_manager.router.data.load_table import LoadTable
from tritonembed_manager.router.link import LINE_BYTES, send_line
from tritonembed_manager.server.process import Process, read_process

TICK_S = 0.25
"""Seconds between two looks of the parent."""
_LOOK_S = 0.75
_STOPPED_S = 0.5
_IDLE_S = 2.0
_SILENT_S = 30.0
_START_S = 300.0
_IDLE_STATE = "S"


class Pulse:
    """Finds out whether a worker hangs.

    Silence is counted in the parent's own ticks. So time in which the parent does not run (it is stopped, or the
    machine sleeps or is overloaded) does not count as silence of the worker.

    A worker that computes, or waits for a CPU or a disk, is busy, and may be silent for 30 s. A starting worker is
    silent while it imports, perhaps from a slow disk. So until `ready` it hangs only if the process is stopped, or
    after five minutes.
    """

    def __init__(self, pid: int, read: Callable[[int], Process | None] = read_process) -> None:
        self._pid = pid
        self._read = read
        self._silent = 0.0
        self._idle = 0.0
        self._stopped = 0.0
        self._cpu_ticks = -1
        self.ready = False
        self.closed = False
        """Whether the worker has closed its end of the socket, and ends."""

    def beat(self) -> None:
        """A line arrived."""
        self._silent = 0.0

    def tick(self, passed: float) -> str | None:
        """The reason to kill the worker, or None. passed: seconds since the last tick."""
        counted = min(passed, 2 * TICK_S)
        self._silent += counted
        if self._silent < _LOOK_S:
            self._idle = self._stopped = 0.0
            return None
        process = self._read(self._pid)
        if process is None:
            return None
        if process.stopped and self._stopped >= _STOPPED_S:
            return "it is stopped (SIGSTOP)"
        self._stopped = self._stopped + counted if process.stopped else 0.0
        is_idle = process.state == _IDLE_STATE and process.cpu_ticks == self._cpu_ticks
        self._idle = self._idle + counted if is_idle and self.ready and not self.closed else 0.0
        self._cpu_ticks = process.cpu_ticks
        most = _SILENT_S if self.ready else _START_S
        if self._idle >= _IDLE_S - _LOOK_S or self._silent >= most:
            return f"it has been silent for {self._silent:.1f} s"
        return None


MODULE = "tritonembed_manager.router.worker"
_BEHIND_BYTES = 8 * 1024 * 1024
"""A worker with this much unread gets no lines with `may_drop`."""

Command = Callable[[int, int], Sequence[str]]
"""Makes the worker's command line from the descriptors of its end of the socket and of the load table."""


def worker_command(control_fd: int, table_fd: int) -> Sequence[str]:
    """The command line of a worker, with this Python."""
    return module_command(MODULE, "--control-fd", str(control_fd), "--table-fd", str(table_fd))


class Worker:
    """A worker process and the parent's end of its socket. Needs a running event loop.

    inherited: further descriptors that the worker has, too.
    """

    def __init__(
        self, command: Command, table: LoadTable, environment: Mapping[str, str], inherited: Sequence[int] = ()
    ) -> None:
        ours, theirs = socket.socketpair()
        self._ours = ours
        with theirs:
            # In its own session, so that Ctrl-C at the terminal reaches only the parent, which then drains.
            self.process = subprocess.Popen(
                command(theirs.fileno(), table.fd),
                pass_fds=[theirs.fileno(), table.fd, *inherited],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.pid = self.process.pid
        self.pulse = Pulse(self.pid)
        self._writer: asyncio.StreamWriter | None = None

    async def listen(
        self, first: Callable[[], Sequence[dict[str, Any]]], receive: Callable[[dict[str, Any]], None]
    ) -> None:
        """Send the first lines, then receive lines until the worker closes its end."""
        reader, writer = await asyncio.open_connection(sock=self._ours, limit=LINE_BYTES)
        self._writer = writer
        try:
            # Made only now, because earlier changes could not be sent.
            for line in first():
                self.send(line)
            while line_bytes := await reader.readline():
                self.pulse.beat()
                receive(json.loads(line_bytes))
        except (ConnectionError, ValueError):
            return
        finally:
            self.pulse.closed = True
            self._writer = None
            writer.close()

    @property
    def ready(self) -> bool:
        """Whether the worker listens on its ports."""
        return self.pulse.ready

    def became_ready(self) -> None:
        """The worker reported that it listens on its ports."""
        self.pulse.ready = True

    def send(self, line: dict[str, Any], *, may_drop: bool = False) -> None:
        """Send a line without waiting. may_drop: drop it if the worker is far behind with reading."""
        if self._writer is not None:
            send_line(self._writer, line, most_unread=_BEHIND_BYTES if may_drop else None)

    async def hangs(self) -> str:
        """Wait until the worker hangs. Returns the reason to kill it."""
        before = time.monotonic()
        while True:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            if (why := self.pulse.tick(now - before)) is not None:
                return why
            before = now

    async def ended(self) -> int:
        """Wait until the worker has ended. Returns its exit status."""
        return await process_ended(self.process)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()


async def process_ended(process: "subprocess.Popen[bytes]") -> int:
    """Wait until a child process has ended. Returns its exit status."""
    loop = asyncio.get_running_loop()
    gone: asyncio.Future[None] = loop.create_future()
    pidfd = os.pidfd_open(process.pid)
    loop.add_reader(pidfd, _resolve, gone)
    try:
        await gone
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
    return process.wait()


def how_it_ended(status: int) -> str:
    """An exit status in words."""
    return f"signal {-status}" if status < 0 else f"exit code {status}"


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
