"""Processes as /proc shows them (Linux)."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """One line of the process table."""

    pid: int
    name: str
    """At most 15 characters of the program's name."""
    state: str
    parent: int
    session: int
    started: int
    """Clock ticks after boot: with the pid it names this process and no later one."""

    @property
    def alive(self) -> bool:
        """False for a zombie, which waits only for its parent to read its exit status."""
        return self.state not in "ZX"


def read_process(pid: int) -> Process | None:
    """A process, or None when there is none."""
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
    )


def process_table() -> dict[int, Process]:
    """Every process, by pid."""
    found = (read_process(int(entry)) for entry in os.listdir("/proc") if entry.isdigit())
    return {process.pid: process for process in found if process is not None}


def family(leader: int, table: dict[int, Process], known: Iterable[Process] = ()) -> list[Process]:
    """The living processes that `leader` brought about: those of its session, and every descendant of one of them.

    known: members seen earlier; their own children count although the chain to the leader is broken.
    The session finds those whose parent has died; the descent finds those that opened a session of their own.
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
