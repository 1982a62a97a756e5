"""The progress bar of a long run."""

from __future__ import annotations

from .bar import Bar
from .sources import Source


class ProgressBar(Bar):
    """Texts done, their rate and the time left; the bar itself follows how much of the source has been read."""

    def __init__(self, source: Source, shown: bool) -> None:
        super().__init__(
            "{task.fields[texts]} texts", "{task.fields[rate]} texts/s", source.total, shown=shown, texts=0, rate="-"
        )
        self._source = source

    def update(self, texts: int) -> None:
        """Show that so many texts are done."""
        rate = f"{texts / self.elapsed:.0f}" if self.elapsed else "-"
        self.show(self._source.position, texts=texts, rate=rate)
