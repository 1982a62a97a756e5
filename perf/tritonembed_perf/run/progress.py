"""The live line of a measurement, on standard error."""

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from tritonembed_perf.run.settings import Settings


class ProgressBar:
    """Of one batch size: how far, how fast, how many failures. Drawn on a terminal only."""

    def __init__(self, settings: Settings, batch_size: int) -> None:
        self._settings = settings
        self._progress = Progress(
            TextColumn("batch {task.fields[batch]}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[said]}"),
            TimeElapsedColumn(),
            console=Console(file=sys.stderr),
            disable=not sys.stderr.isatty(),
            transient=True,
        )
        total = settings.duration if settings.duration is not None else settings.requests
        self._task = self._progress.add_task("", total=total, batch=batch_size, said="warm-up")

    def __enter__(self) -> "ProgressBar":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def update(self, done: int, failed: int, elapsed: float) -> None:
        """So many requests were answered, or failed, in so many seconds."""
        if not elapsed:
            return
        said = f"{done:,} answers, {done / elapsed:,.0f} a second" + (f", {failed:,} failed" if failed else "")
        completed = elapsed if self._settings.duration is not None else done + failed
        self._progress.update(self._task, completed=completed, said=said)
