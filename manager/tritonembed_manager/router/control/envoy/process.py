"""Envoy's process: its start, its log, and its end."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tritonembed_manager.router.control.worker_process import process_ended
from tritonembed_manager.server import exec_shim

_ENDS_S = 2.0
_FLUSH_EVERY_MS = 100
"""Of access logs."""


class EnvoyProcess:
    """A running Envoy. Start it from the main thread: it ends with the thread that started it.

    line: called with each line that it writes. inherited: descriptors that it gets.
    """

    def __init__(
        self,
        binary: Path,
        bootstrap: Path,
        threads: int,
        line: Callable[[str], None],
        inherited: Sequence[int] = (),
    ) -> None:
        self._line = line
        options = ["-c", str(bootstrap), "--concurrency", str(threads), "--disable-hot-restart"]
        options += ["--file-flush-interval-msec", str(_FLUSH_EVERY_MS)]
        # In a session of its own: Ctrl-C reaches only the manager, which then drains.
        self._child = subprocess.Popen(
            [
                *(sys.executable, "-I", exec_shim.__file__, str(os.getpid())),
                *(str(binary), *options, "--log-level", "warning", "--log-format", "%v"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            pass_fds=tuple(inherited),
        )
        self.pid = self._child.pid

    async def ended(self) -> int:
        """Read what it writes until it has ended. Returns its exit status."""
        reading = asyncio.ensure_future(self._read())
        try:
            status = await process_ended(self._child)
            await asyncio.wait([reading], timeout=_ENDS_S)
            return status
        finally:
            reading.cancel()

    def terminate(self) -> None:
        """Ask it to write its access log and end. It does not wait for requests."""
        if self._child.poll() is None:
            self._child.terminate()

    def kill(self) -> None:
        """End it at once."""
        if self._child.poll() is None:
            self._child.kill()
            self._child.wait()

    async def _read(self) -> None:
        assert self._child.stderr is not None
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), self._child.stderr
        )
        try:
            while True:
                try:
                    line = await reader.readline()
                except ValueError:  # longer than the buffer
                    continue
                if not line:
                    return
                self._line(line.decode(errors="replace").rstrip())
        finally:
            transport.close()
