"""Watches the processes of a tritonserver: notices python stubs that end, and a start that hangs.

Triton does not restart a dead stub, and still reports that it is ready. So each stub is watched through a pidfd, which
becomes readable when its process ends.

A start that hangs is ended long before --startup-timeout. A quiet phase is no hang. An instance may wait for its turn
on a GPU (the kernel lists the processes that wait for a lock). A hub may be slow (bytes are written), or a disk or a
network file system (the process is in state D). A debugger may have stopped a process (state t).
"""

import asyncio
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tritonembed_manager.server.process import Process
from tritonembed_manager.server.tritonserver import STUB

_STUB_NAME = STUB[:15]
_BEFORE_EXEC = ("bash", "sh", _STUB_NAME)
"""Names that a child may have before it is a stub, because Triton starts stubs through a shell."""


class StubWatch:
    """Watches the stubs among given processes.

    ended: called by the running event loop with the pid of a stub that has ended.
    """

    def __init__(self, ended: Callable[[int], None]) -> None:
        self._report = ended
        self._loop = asyncio.get_running_loop()
        self._watched: dict[int, tuple[int, str]] = {}
        self._seen: set[int] = set()
        self._ended: set[int] = set()

    @property
    def watched(self) -> dict[int, str]:
        """The model of each watched stub, by pid."""
        return {pid: model for pid, (_, model) in self._watched.items()}

    def look(self, processes: Iterable[Process]) -> None:
        """Watch the stubs that are not watched yet."""
        stubs = {process.pid: process for process in processes if process.name == _STUB_NAME}
        for process in stubs.values():
            # A stub's fork has the stub's name until it calls exec. It ends soon and runs no model.
            if process.pid in self._watched or process.parent in stubs:
                continue
            try:
                pidfd = os.pidfd_open(process.pid)
            except ProcessLookupError:
                continue
            model = _model_of(process.pid)
            if not model:
                # The process is calling exec, and has its arguments at the next check; or it is ending.
                os.close(pidfd)
                continue
            self._watched[process.pid] = (pidfd, model)
            self._seen.add(process.pid)
            self._loop.add_reader(pidfd, self._report, process.pid)

    def never_ran(self, ended_children: Iterable[Process]) -> bool:
        """Whether one of the server's children ended before it became a stub: Triton waits for it silently.

        True only at the second check, because at the first Triton may be about to notice.
        """
        ended = {one.pid for one in ended_children if one.name in _BEFORE_EXEC} - self._seen
        again = ended & self._ended
        self._ended = ended
        return bool(again)

    def forget(self, pid: int) -> str:
        """Stop watching a stub. Returns its model."""
        pidfd, model = self._watched.pop(pid)
        self._loop.remove_reader(pidfd)
        os.close(pidfd)
        return model

    def close(self) -> None:
        """Stop watching all stubs."""
        for pid in list(self._watched):
            self.forget(pid)


def _model_of(pid: int) -> str:
    """The model of a stub, from its argument REPOSITORY/MODEL/VERSION/model.py; empty if there is no such argument."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    # There are no arguments, either, while a process calls exec or ends.
    path = next((Path(os.fsdecode(a)) for a in arguments if a.endswith(b"model.py")), None)
    return path.parents[1].name if path is not None and len(path.parts) > 2 else ""


STOPPED_S = 3.0
"""After this time, a stopped process is not expected to continue."""
IDLE_S = 60.0
"""A start hangs if none of the server's processes has computed, read, written or logged anything for this long.

While a server waits, each of its processes uses far less CPU time than _LEAST_TICKS in this time.
"""
_LEAST_TICKS = 20
_LEAST_BYTES = 1 << 16
_LEAST_FAULTS = 16
_LONGEST_TURN_S = 2.0
_BUSY_STATES = "RDt"


@dataclass(frozen=True)
class _Done:
    """A process's activity so far."""

    ticks: int
    faults: int
    moved: int

    def is_past(self, other: "_Done") -> bool:
        return (
            self.ticks - other.ticks >= _LEAST_TICKS
            or self.faults - other.faults >= _LEAST_FAULTS
            or self.moved - other.moved >= _LEAST_BYTES
        )


class StartWatch:
    """Watches one start. At most two seconds count between two checks, so that time in which the manager does not run
    (it is stopped, or the machine sleeps) does not count.

    moved: returns the bytes that a process has read and written. waiting: returns the processes that wait for a file
    lock.
    """

    def __init__(
        self,
        *,
        moved: Callable[[int], int] | None = None,
        waiting: Callable[[], Collection[int]] | None = None,
    ) -> None:
        self._moved = moved or bytes_moved
        self._waiting = waiting or waiting_for_locks
        self._stopped: dict[int, float] = {}
        self._idle = 0.0
        self._done: dict[int, _Done] = {}
        self._logged = -1

    def look(
        self, members: Collection[Process], passed: float, *, logged: int = 0, models: Mapping[int, str] | None = None
    ) -> str | None:
        """Return the reason why the start hangs, or None.

        members: the server's processes. passed: seconds since the last check. logged: bytes of its log so far.
        models: the model of each python process, by pid.
        """
        passed = min(passed, _LONGEST_TURN_S)
        self._stopped = {p.pid: self._stopped.get(p.pid, -passed) + passed for p in members if p.stopped}
        for process in members:
            if self._stopped.get(process.pid, 0.0) >= STOPPED_S:
                model = (models or {}).get(process.pid)
                name = f"the python process of the model {model!r}" if model else process.name
                return f"{name} is stopped (SIGSTOP, pid {process.pid}), so that the start hangs"
        self._idle += passed
        if self._gets_on(members, logged):
            self._idle = 0.0
        elif self._idle >= IDLE_S and not self._waits_for_a_lock(members):
            return f"the start has made no progress for {self._idle:.0f} s"
        return None

    def _gets_on(self, members: Collection[Process], logged: int) -> bool:
        done = {p.pid: _Done(p.cpu_ticks, p.faults, self._moved(p.pid)) for p in members}
        gets_on = (
            logged != self._logged
            or done.keys() != self._done.keys()
            or any(process.state in _BUSY_STATES for process in members)
            or any(now.is_past(self._done[pid]) for pid, now in done.items())
        )
        if gets_on:
            self._done, self._logged = done, logged
        return gets_on

    def _waits_for_a_lock(self, members: Collection[Process]) -> bool:
        waits = not {process.pid for process in members}.isdisjoint(self._waiting())
        if waits:
            self._idle = 0.0
        return waits


def bytes_moved(pid: int) -> int:
    """Bytes that a process has read from and written to files and pipes; 0 if the kernel does not count them."""
    try:
        text = Path(f"/proc/{pid}/io").read_text()
    except OSError:
        return 0
    counts = dict(line.split(": ") for line in text.splitlines())
    return int(counts["rchar"]) + int(counts["wchar"])


def waiting_for_locks() -> Collection[int]:
    """The processes that wait for a file lock that another process holds."""
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return ()
    # N: -> FLOCK ADVISORY WRITE PID …
    fields = (line.split() for line in lines if "->" in line)
    return {int(words[5]) for words in fields if len(words) > 5 and words[5].isdigit()}
