"""One tritonserver with everything it starts: begun, ended, and nothing of it left."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from tritonembed_manager.processes import Process, family, process_table
from tritonembed_manager.shared_memory import remove_regions

_SHIM = Path(__file__).with_name("exec_shim.py")
_KILL_PATIENCE_S = 10.0


class ServerProcess:
    """A running tritonserver. Start it from the main thread: it ends with the thread that started it."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], region_prefix: str) -> None:
        self._region_prefix = region_prefix
        self._known: list[Process] = []
        # A session of its own: Ctrl-C at the terminal reaches the manager alone, which then stops it in order.
        self._child = subprocess.Popen(
            [sys.executable, "-I", str(_SHIM), str(os.getpid()), *command],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.pid = self._child.pid
        self.pidfd = os.pidfd_open(self.pid)
        """Readable once the server has ended."""

    @property
    def output(self) -> IO[bytes]:
        """Its log."""
        assert self._child.stdout is not None
        return self._child.stdout

    def exit_status(self) -> int | None:
        """None while it runs; minus the signal's number when a signal ended it."""
        return self._child.poll()

    def members(self) -> list[Process]:
        """Server, stubs and whatever they started, as long as they live."""
        self._known = family(self.pid, process_table(), self._known)
        return self._known

    def terminate(self) -> None:
        """Ask the server to finish what is in flight and end."""
        if self._child.poll() is None:
            self.members()
            self._child.send_signal(signal.SIGTERM)

    def close(self) -> None:
        """End everything that is left, at once, and remove its shared memory. Does nothing the second time."""
        if self.pidfd < 0:
            return
        until = time.monotonic() + _KILL_PATIENCE_S
        while (left := self.members()) and time.monotonic() < until:
            for process in left:
                _kill(process.pid)
            self._child.poll()
            time.sleep(0.01)
        self._child.wait()
        remove_regions(self._region_prefix)
        self.output.close()
        os.close(self.pidfd)
        self.pidfd = -1


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
