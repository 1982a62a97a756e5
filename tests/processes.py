"""Processes that may end while they are looked at, read from /proc."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from tritonembed_manager.server.process import Process
from tritonembed_manager.server.tritonserver import STUB


def command(pid: int) -> list[str]:
    """The words of its command line; none if it has ended."""
    try:
        return [os.fsdecode(word) for word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]
    except OSError:
        return []


def children(pid: int) -> list[int]:
    """The children of any of its threads; none if it has ended."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += [int(word) for word in path.read_text().split()]
    return found


def model_stubs(processes: Iterable[Process], model: str = "") -> list[int]:
    """Pids of the python stubs that run a model (or this one). A stub's fork has its name before it has a command."""
    return [
        process.pid
        for process in processes
        if process.name == STUB[:15]
        and any(word.endswith("/model.py") and f"/{model}" in word for word in command(process.pid))
    ]
