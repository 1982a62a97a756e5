"""One progress bar on standard error, for every command that has one."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

AnyBar = TypeVar("AnyBar", bound="Bar")


class Bar:
    """Text, the bar, more text, the time so far and the time left. Drawn while entered.

    before, behind: formats of what `show` is given. total: of `completed`; None where it is not known.
    """

    def __init__(
        self, before: str, behind: str, total: float | None, *, shown: bool, transient: bool = False, **texts: Any
    ) -> None:
        self._progress = Progress(
            TextColumn(before),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn(behind),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            # Asked for where standard error is no terminal, the bar is still drawn; once, when all is done.
            console=Console(file=sys.stderr, force_terminal=True if shown and sys.stderr.isatty() else None),
            disable=not shown,
            transient=transient,
        )
        self._task = self._progress.add_task("", total=total, **texts)

    def __enter__(self: AnyBar) -> AnyBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    @property
    def elapsed(self) -> float | None:
        """Seconds since it was first drawn."""
        return self._progress.tasks[0].elapsed

    def show(self, completed: float, **texts: Any) -> None:
        """Draw that so much of the total is done, with these texts."""
        self._progress.update(self._task, completed=completed, **texts)
