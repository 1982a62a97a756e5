"""The live line of a measurement."""

import sys

from tritonembed.cli.bar import Bar
from tritonembed_perf.run.settings import Settings


class ProgressBar(Bar):
    """Of one batch size: how far, how fast, how many failures. Drawn on a terminal only."""

    def __init__(self, settings: Settings, batch_size: int) -> None:
        self._is_timed = settings.duration is not None
        total = settings.duration if settings.duration is not None else settings.requests
        super().__init__(
            f"batch {batch_size}",
            "{task.fields[said]}",
            total,
            shown=sys.stderr.isatty(),
            transient=True,
            said="warm-up",
        )

    def update(self, done: int, failed: int, elapsed: float) -> None:
        """So many requests were answered, or failed, in so many seconds."""
        if not elapsed:
            return
        said = f"{done:,} answers, {done / elapsed:,.0f} a second" + (f", {failed:,} failed" if failed else "")
        self.show(elapsed if self._is_timed else done + failed, said=said)
