"""What people see: the table of everything that was tried, row by row, and one live line under it."""

import shutil
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TextIO

from tritonembed_manager.tune.attempts import Attempt, Run
from tritonembed_manager.tune.candidate import Candidate

_COLUMNS = ("#", "tokenizers", "replicas", "batch tokens", "load", "tokens/s", "p50 ms", "p99 ms", "vs defaults")
_WIDTHS = (3, 10, 8, 12, 12, 10, 8, 8, 11)
_REDRAW_S = 1.0

Stage = Callable[[str], None]
"""Takes what is being done now, in a word or two."""


class Table:
    """Rows to `out` as they come: one for each load of an attempt, or one that says why it failed."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._rows = 0

    def title(self, text: str) -> None:
        """A heading, and the names of the columns."""
        print(text, _line(_COLUMNS), sep="\n", file=self._out, flush=True)

    def row(self, attempt: Attempt, gains: Mapping[str, float] | None = None) -> None:
        """gains: by load, against the defaults; 0.05 is 5 % more tokens a second."""
        self._rows += 1
        candidate = attempt.candidate
        settings = (candidate.tokenizer_instances, candidate.replicas, candidate.max_batch_tokens)
        head = [str(self._rows), *map(str, settings)]
        if attempt.failure is not None:
            print(_line(head), attempt.failure, file=self._out, flush=True)
        for load, runs in attempt.runs.items():
            run = typical(runs)
            gain = f"{gains[load]:+.1%}" if gains and load in gains else ""
            figures = [f"{run.tokens_per_second:,.0f}", f"{run.p50_ms:,.1f}", f"{run.p99_ms:,.1f}", gain]
            print(_line([*head, load, *figures]), file=self._out, flush=True)
            head = [""] * len(head)


class Progress:
    """One line on stderr that is rewritten: what is tried, what it does now, and about how long the rest takes.

    Where stderr is no terminal, one line for each attempt instead.
    """

    def __init__(self, err: TextIO | None = None) -> None:
        self._err = err or sys.stderr
        self._live = self._err.isatty()
        self._what, self._how_sure = "", ""
        self._until: float | None = None
        self._drawn = ("", 0.0)

    def begin(self, what: str, seconds_left: float | None, how_sure: str = "about") -> None:
        """The next attempt. seconds_left: until the end of all of them, where that can be told."""
        self._what, self._how_sure = what, how_sure
        self._until = None if seconds_left is None else time.monotonic() + seconds_left
        if not self._live:
            print(f"tritonembed-manager: {what}{self._left()}", file=self._err, flush=True)

    def stage(self, doing: str) -> None:
        """What the attempt does now; may be called as often as one likes."""
        now = time.monotonic()
        if not self._live or (doing == self._drawn[0] and now - self._drawn[1] < _REDRAW_S):
            return
        self._drawn = (doing, now)
        # What is longer than the terminal is wide would leave its first part behind.
        line = f"{self._what}: {doing}{self._left()}"[: shutil.get_terminal_size().columns - 1]
        print(f"\r\x1b[K{line}", end="", file=self._err, flush=True)

    def clear(self) -> None:
        """Before something else is printed."""
        if self._live:
            print("\r\x1b[K", end="", file=self._err, flush=True)
        self._drawn = ("", 0.0)

    def _left(self) -> str:
        if self._until is None:
            return ""
        seconds = max(self._until - time.monotonic(), 0)
        return f", {self._how_sure} " + (f"{seconds / 60:.0f} min left" if seconds >= 90 else f"{seconds:.0f} s left")


def typical(runs: Sequence[Run]) -> Run:
    """The run whose rate is the median (the lower of the two middle ones)."""
    rate = statistics.median_low([run.tokens_per_second for run in runs])
    return next(run for run in runs if run.tokens_per_second == rate)


def gains_over(attempt: Attempt, rates: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """An attempt's median rates against the median of `rates`, by load."""
    return {
        load: statistics.median(run.tokens_per_second for run in runs) / statistics.median(rates[load]) - 1
        for load, runs in attempt.runs.items()
        if rates.get(load)
    }


def describe(candidate: Candidate, defaults: Candidate) -> str:
    """A candidate in words."""
    return f"{candidate} (the defaults)" if candidate == defaults else str(candidate)


def _line(cells: Sequence[str]) -> str:
    return "  ".join(cell.rjust(width) for cell, width in zip(cells, _WIDTHS, strict=False))
