"""The processes of one tritonserver: starts the server, finds all processes that it started, and ends them.

Reads processes from /proc. Linux only.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tritonembed_manager.server.run_folder import make_private, remove_regions


@dataclass(frozen=True)
class Process:
    """A process, by the process table."""

    pid: int
    name: str
    """The first 15 characters of the program's name."""
    state: str
    parent: int
    session: int
    started: int
    """Clock ticks after boot. With the pid, it identifies the process, because pids are reused."""
    cpu_ticks: int = 0
    """CPU time of all threads, in clock ticks (10 ms)."""
    faults: int = 0
    """Page faults that had to read from a disk."""

    @property
    def stopped(self) -> bool:
        """Whether a signal such as SIGSTOP has stopped it; a debugger does not count."""
        return self.state == "T"

    @property
    def alive(self) -> bool:
        """False for a zombie, which only waits for its parent to read its exit status."""
        return self.state not in "ZX"


def read_process(pid: int) -> Process | None:
    """Read a process; None if there is no process with this pid."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # PID (NAME) STATE PARENT GROUP SESSION …, where the name may hold spaces and parentheses.
    head, _, tail = stat.rpartition(")")
    fields = tail.split()
    return Process(
        pid,
        name=head.partition("(")[2],
        state=fields[0],
        parent=int(fields[1]),
        session=int(fields[3]),
        started=int(fields[19]),
        cpu_ticks=int(fields[11]) + int(fields[12]),
        faults=int(fields[9]),
    )


def process_table() -> dict[int, Process]:
    """Every process, by pid."""
    found = (read_process(int(entry)) for entry in os.listdir("/proc") if entry.isdigit())
    return {process.pid: process for process in found if process is not None}


def family(leader: int, table: dict[int, Process], known: Iterable[Process] = ()) -> list[Process]:
    """The living processes of `leader`: those of its session, and all their descendants.

    known: members seen earlier. Their children count even if the chain of parents to the leader is broken.
    The session finds processes whose parent has died. Descent finds processes that opened a new session.
    """
    started = {process.pid: process.started for process in known}
    members = {
        pid for pid, process in table.items() if leader in (pid, process.session) or started.get(pid) == process.started
    }
    grown = True
    while grown:
        more = {pid for pid, process in table.items() if process.parent in members} - members
        grown = bool(more)
        members |= more
    return [table[pid] for pid in sorted(members) if table[pid].alive]


SCRATCH_VARIABLE = "TRITONEMBED_SCRATCH"
"""The engine's variable. Its module is not imported, because it imports numpy."""
_SHIM = Path(__file__).with_name("exec_shim.py")
_KILL_PATIENCE_S = 10.0


class ServerProcess:
    """A running tritonserver. Start it from the main thread: it ends with the thread that started it."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        region_prefix: str,
        *,
        home: Path | None = None,
        keep_open: Sequence[int] = (),
    ) -> None:
        """home: the server's current folder. keep_open: descriptors that it and its stubs inherit."""
        self._region_prefix = region_prefix
        self._known: list[Process] = []
        self.ended_children: list[Process] = []
        """At the last call of `members`: the server's ended children whose exit status it had not read."""
        # A separate session: Ctrl-C reaches only the manager, which then stops the server in order.
        self._child = subprocess.Popen(
            [sys.executable, "-I", str(_SHIM), str(os.getpid()), *command],
            env={**environment, **({SCRATCH_VARIABLE: str(home.parent)} if home is not None else {})},
            cwd=home,
            pass_fds=keep_open,
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
        """The server's log."""
        assert self._child.stdout is not None
        return self._child.stdout

    def exit_status(self) -> int | None:
        """None while the server runs; the negative signal number if a signal ended it."""
        return self._child.poll()

    def members(self) -> list[Process]:
        """The living processes: the server, its stubs and everything they started. Makes their regions private."""
        make_private(self._region_prefix)
        table = process_table()
        self._known = family(self.pid, table, self._known)
        self.ended_children = [one for one in table.values() if one.parent == self.pid and not one.alive]
        return self._known

    def terminate(self) -> None:
        """Ask the server to finish its requests in flight and end."""
        if self._child.poll() is None:
            self.members()
            self._child.send_signal(signal.SIGTERM)

    def close(self) -> None:
        """Kill all remaining processes and remove their shared memory. A second call does nothing."""
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
