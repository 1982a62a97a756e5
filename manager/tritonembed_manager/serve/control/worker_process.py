"""One worker process, and the parent's end of its socket."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tritonembed_manager.serve.load_table import LoadTable

MODULE = "tritonembed_manager.serve.worker"
_LINE_BYTES = 64 * 1024 * 1024
_BEHIND_BYTES = 8 * 1024 * 1024
"""A worker so far behind with reading what it is told is not told more than it needs."""

Command = Callable[[int, int], Sequence[str]]
"""The worker's command line, from the descriptors of its end of the socket and of the load table."""


def worker_command(control_fd: int, table_fd: int) -> Sequence[str]:
    """This Python, running the worker."""
    return [sys.executable, "-m", MODULE, "--control-fd", str(control_fd), "--table-fd", str(table_fd)]


class Worker:
    """One process and the parent's end of its socket. Needs a running event loop."""

    def __init__(self, command: Command, table: LoadTable, environment: Mapping[str, str]) -> None:
        ours, theirs = socket.socketpair()
        self._ours = ours
        with theirs:
            # A session of its own: Ctrl-C at the terminal reaches the parent alone, which then drains.
            self.process = subprocess.Popen(
                command(theirs.fileno(), table.fd),
                pass_fds=[theirs.fileno(), table.fd],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.pid = self.process.pid
        self.ready = False
        self._writer: asyncio.StreamWriter | None = None

    async def listen(
        self, first: Callable[[], Sequence[dict[str, Any]]], hear: Callable[[dict[str, Any]], None]
    ) -> None:
        """Tell it the first lines, then hear what it says, until it has closed its end."""
        reader, writer = await asyncio.open_connection(sock=self._ours, limit=_LINE_BYTES)
        self._writer = writer
        try:
            # Made now: what changed before could not be told.
            for line in first():
                self.tell(line)
            while line_bytes := await reader.readline():
                hear(json.loads(line_bytes))
        except (ConnectionError, ValueError):
            return
        finally:
            self._writer = None
            writer.close()

    def tell(self, line: dict[str, Any], *, may_drop: bool = False) -> None:
        """One line, without waiting. may_drop: not worth it for a worker that is far behind with reading."""
        writer = self._writer
        if writer is None or writer.is_closing():
            return
        if may_drop and writer.transport.get_write_buffer_size() > _BEHIND_BYTES:
            return
        writer.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")

    async def ended(self) -> int:
        """Its exit status, once it has ended."""
        loop = asyncio.get_running_loop()
        gone: asyncio.Future[None] = loop.create_future()
        pidfd = os.pidfd_open(self.pid)
        loop.add_reader(pidfd, _resolve, gone)
        try:
            await gone
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)
        return self.process.wait()

    def kill(self) -> None:
        """End it at once."""
        if self.process.poll() is None:
            self.process.kill()


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
