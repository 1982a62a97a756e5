"""The progress bar of a long run, on standard error."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .sources import Source


class ProgressBar:
    """Texts done, their rate and the time left; the bar itself follows how much of the source has been read."""

    def __init__(self, source: Source, shown: bool) -> None:
        self._source = source
        self._progress = Progress(
            TextColumn("{task.fields[texts]} texts"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]} texts/s"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            # Asked for where standard error is no terminal, the bar is still drawn; once, when all is done.
            console=Console(file=sys.stderr, force_terminal=True if shown and sys.stderr.isatty() else None),
            disable=not shown,
        )
        self._task = self._progress.add_task("", total=source.total, texts=0, rate="-")

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def update(self, texts: int) -> None:
        """Show that so many texts are done."""
        elapsed = self._progress.tasks[0].elapsed
        rate = f"{texts / elapsed:.0f}" if elapsed else "-"
        self._progress.update(self._task, completed=self._source.position, texts=texts, rate=rate)
