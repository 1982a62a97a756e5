"""Watches the python stubs of a tritonserver.

A stub that dies stays dead, and Triton goes on calling itself ready: each is watched through a pidfd, which becomes
readable the moment its process ends.
"""

import os
import selectors
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from tritonembed_manager.processes import Process
from tritonembed_manager.tritonserver import STUB

_STUB_NAME = STUB[:15]


class Selector(Protocol):
    """What is needed of `selectors.BaseSelector`; an event loop can be behind it, too."""

    def register(self, fileobj: int, events: int, data: Any) -> Any:
        """Report, with `data`, when the descriptor becomes readable."""

    def unregister(self, fileobj: int) -> Any:
        """No longer."""


class StubWatch:
    """The stubs among given processes; `selector` reports the end of one with ("stub", pid) as its key's data."""

    def __init__(self, selector: Selector) -> None:
        self._selector = selector
        self._watched: dict[int, tuple[int, str]] = {}

    @property
    def watched(self) -> dict[int, str]:
        """The stubs under watch: pid and the model each one runs."""
        return {pid: model for pid, (_, model) in self._watched.items()}

    def look(self, processes: Iterable[Process]) -> None:
        """Watch those of the processes that are stubs and are not watched yet."""
        stubs = {process.pid: process for process in processes if process.name == _STUB_NAME}
        for process in stubs.values():
            # What a stub forks has its name until it calls exec, and ends soon: it is no model's process.
            if process.pid in self._watched or process.parent in stubs:
                continue
            try:
                pidfd = os.pidfd_open(process.pid)
            except ProcessLookupError:
                continue
            model = _model_of(process.pid)
            if not model:
                # It is in the middle of exec, and will have its arguments at the next look; or it just ends.
                os.close(pidfd)
                continue
            self._watched[process.pid] = (pidfd, model)
            self._selector.register(pidfd, selectors.EVENT_READ, ("stub", process.pid))

    def forget(self, pid: int) -> str:
        """Stop watching a stub; returns the model it ran."""
        pidfd, model = self._watched.pop(pid)
        self._selector.unregister(pidfd)
        os.close(pidfd)
        return model

    def close(self) -> None:
        """Stop watching all of them."""
        for pid in list(self._watched):
            self.forget(pid)


def _model_of(pid: int) -> str:
    """The model whose REPOSITORY/MODEL/VERSION/model.py a stub was started with; empty if it can't be told."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    # Empty, too, of a process that has just called exec, or that ends.
    path = next((Path(os.fsdecode(a)) for a in arguments if a.endswith(b"model.py")), None)
    return path.parents[1].name if path is not None and len(path.parts) > 2 else ""
