"""Progress bars on standard error."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .sources import Source

AnyBar = TypeVar("AnyBar", bound="Bar")


class Bar:
    """Text, the bar, more text, the time so far and the time left. Drawn while entered.

    before, behind: formats of what `show` gets. total: of `completed`; None if it is not known.
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
            # If standard error is not a terminal, a bar that was asked for is drawn once, at the end.
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
        """Seconds since the bar was first drawn."""
        return self._progress.tasks[0].elapsed

    def show(self, completed: float, **texts: Any) -> None:
        """Draw that ``completed`` of the total is done, with these texts."""
        self._progress.update(self._task, completed=completed, **texts)


class EmbeddingBar(Bar):
    """Texts embedded and their rate; the bar itself follows how much of the source has been read."""

    def __init__(self, source: Source, shown: bool) -> None:
        super().__init__(
            "{task.fields[texts]} texts", "{task.fields[rate]} texts/s", source.total, shown=shown, texts=0, rate="-"
        )
        self._source = source

    def update(self, texts: int) -> None:
        """Draw that ``texts`` texts are embedded."""
        rate = f"{texts / self.elapsed:.0f}" if self.elapsed else "-"
        self.show(self._source.position, texts=texts, rate=rate)
