"""The output of `tune`: a table with a row per trial, a live line under it, the folder OUT, and tune.json in OUT.

OUT is made and tried before the measurements begin. tune.json holds the trials and the decision. Triton loads only
folders, so it ignores the file.
"""

import contextlib
import errno
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from tritonembed_manager.errors import ManagerError, StartError
from tritonembed_manager.server.machine import usable_cores
from tritonembed_manager.server.repository import MARKER
from tritonembed_manager.tune.plan import TunePlan, TuneSettings
from tritonembed_manager.tune.search import TuneVerdict
from tritonembed_manager.tune.trials import Candidate, CandidateTrial, LoadRun, TrialLedger

_COLUMNS = ("#", "tokenizers", "replicas", "batch tokens", "load", "tokens/s", "p50 ms", "p99 ms", "vs defaults")
_WIDTHS = (3, 10, 8, 12, 12, 10, 8, 8, 11)
_REDRAW_S = 1.0

Stage = Callable[[str], None]
"""Receives the current step, in a word or two."""


class Table:
    """Prints rows to `out` as they come: one per load of a trial, or the reason why the trial failed."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._rows = 0

    def title(self, text: str) -> None:
        """A heading, and the names of the columns."""
        print(text, _line(_COLUMNS), sep="\n", file=self._out, flush=True)

    def row(self, trial: CandidateTrial, gains: Mapping[str, float] | None = None) -> None:
        """gains: by load, against the defaults; 0.05 is 5 % more tokens per second."""
        self._rows += 1
        candidate = trial.candidate
        settings = (candidate.tokenizer_instances, candidate.replicas, candidate.max_batch_tokens)
        head = [str(self._rows), *map(str, settings)]
        if trial.failure is not None:
            print(_line(head), trial.failure, file=self._out, flush=True)
        for load, runs in trial.runs.items():
            run = typical(runs)
            gain = f"{gains[load]:+.1%}" if gains and load in gains else ""
            figures = [f"{run.tokens_per_second:,.0f}", f"{run.p50_ms:,.1f}", f"{run.p99_ms:,.1f}", gain]
            print(_line([*head, load, *figures]), file=self._out, flush=True)
            head = [""] * len(head)


class TuneProgress:
    """A line on stderr that is rewritten: the candidate, its current step, and about how long the rest takes.

    If stderr is no terminal, a line per trial instead.
    """

    def __init__(self, err: TextIO | None = None) -> None:
        self._err = err or sys.stderr
        self._live = self._err.isatty()
        self._what, self._how_sure = "", ""
        self._until: float | None = None
        self._drawn = ("", 0.0)

    def begin(self, what: str, seconds_left: float | None, how_sure: str = "about") -> None:
        """Show the next trial. seconds_left: until the end of all trials, if known."""
        self._what, self._how_sure = what, how_sure
        self._until = None if seconds_left is None else time.monotonic() + seconds_left
        if not self._live:
            print(f"tritonembed-manager: {what}{self._left()}", file=self._err, flush=True)

    def stage(self, doing: str) -> None:
        """Show the trial's current step. May be called often."""
        now = time.monotonic()
        if not self._live or (doing == self._drawn[0] and now - self._drawn[1] < _REDRAW_S):
            return
        self._drawn = (doing, now)
        # A line longer than the terminal's width would leave its first part behind.
        line = f"{self._what}: {doing}{self._left()}"[: shutil.get_terminal_size().columns - 1]
        print(f"\r\x1b[K{line}", end="", file=self._err, flush=True)

    def clear(self) -> None:
        """Clear the line before other output."""
        if self._live:
            print("\r\x1b[K", end="", file=self._err, flush=True)
        self._drawn = ("", 0.0)

    def _left(self) -> str:
        if self._until is None:
            return ""
        seconds = max(self._until - time.monotonic(), 0)
        return f", {self._how_sure} " + (f"{seconds / 60:.0f} min left" if seconds >= 90 else f"{seconds:.0f} s left")


def typical(runs: Sequence[LoadRun]) -> LoadRun:
    """The run whose rate is the median (the lower of the two middle ones)."""
    rate = statistics.median_low([run.tokens_per_second for run in runs])
    return next(run for run in runs if run.tokens_per_second == rate)


def gains_over(trial: CandidateTrial, rates: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """A trial's median rates against the median of `rates`, by load."""
    return {
        load: statistics.median(run.tokens_per_second for run in runs) / statistics.median(rates[load]) - 1
        for load, runs in trial.runs.items()
        if rates.get(load)
    }


def describe(candidate: Candidate, defaults: Candidate) -> str:
    """A candidate as text; the defaults are marked."""
    return f"{candidate} (the defaults)" if candidate == defaults else str(candidate)


def _line(cells: Sequence[str]) -> str:
    return "  ".join(cell.rjust(width) for cell, width in zip(cells, _WIDTHS, strict=False))


RECORD = "tune.json"


def write_record(
    options: TuneSettings,
    plan: TunePlan,
    searched: TrialLedger,
    checked: TrialLedger,
    written: Candidate,
    verdict: TuneVerdict,
) -> None:
    """Write OUT/tune.json, whole or not at all. Raises ManagerError if it can't be written."""
    comparison = verdict.comparison
    content = {
        "machine": _machine(),
        "device": options.settings.device,
        "seconds_per_run": options.seconds,
        "loads": list(map(str, plan.loads)),
        "second_load": str(plan.second),
        "tried_values": {name: list(values) for name, values in asdict(plan.space).items()},
        "defaults": asdict(plan.defaults),
        "written": asdict(written),
        "beats_defaults": verdict.beats_defaults,
        "decision": verdict.sentence,
        "gain_on_second_load": comparison and comparison.gain,
        "gain_needed": comparison and comparison.needed,
        "search": [_trial(trial) for trial in searched.trials],
        "check": [_trial(trial) for trial in checked.trials],
    }
    _write(options.out / RECORD, json.dumps(content, indent=2) + "\n")


def _machine() -> str:
    """Processor, cores, memory, Python, torch and GPUs in one line."""
    cpu = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "?")
    memory = next((int(line.split()[1]) >> 20 for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    parts = [cpu, f"{usable_cores()} cores", f"{memory} GiB", f"Python {platform.python_version()}"]
    try:
        import torch

        parts.append(f"torch {torch.__version__}")
        parts += [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    except ImportError:
        pass
    return ", ".join(parts)


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def _trial(trial: CandidateTrial) -> dict[str, Any]:
    runs = {load: [asdict(run) for run in runs] for load, runs in trial.runs.items()}
    return {**asdict(trial.candidate), "failure": trial.failure, "seconds": round(trial.seconds, 1), "runs": runs}


def _write(path: Path, text: str) -> None:
    scratch = path.with_name(f".{path.name}")
    try:
        scratch.write_text(text)
        os.replace(scratch, path)
    except OSError as error:
        raise ManagerError(f"{path.parent} is written, but not its {path.name}: {error.strerror}") from None


@contextlib.contextmanager
def out_folder(out: Path, force: bool) -> Iterator[None]:
    """Make `out`, and remove it at the end if nothing was written to it.

    Raises StartError for a folder that `render` would refuse after all the measurements.
    """
    if str(out).startswith("-"):
        raise StartError(f"the folder to write comes first, before {out}")
    if out.name in ("", ".."):
        raise StartError(f"{out} can't be replaced; give the folder to write by its name")
    if out.exists() and not out.is_dir():
        raise StartError(f"{out} is not a folder")
    if out.is_dir() and any(out.iterdir()) and not force and not (out / MARKER).is_file():
        raise StartError(f"{out} was not written by render; choose another folder, or --force to write into it")
    made: list[Path] = []
    try:
        try:
            _make(out, made)
            _rehearse(out)
        except OSError as error:
            raise StartError(f"cannot write {out}: {_reason(error)}") from None
        yield
    finally:
        # A folder with content stays, and so do its parents.
        with contextlib.suppress(OSError):
            for folder in reversed(made):
                folder.rmdir()


def _make(out: Path, made: list[Path]) -> None:
    """Make `out` and its missing parents, and append them to `made`."""
    for folder in reversed([out, *out.parents]):
        if not folder.exists():
            made.append(folder)
            folder.mkdir()


def _rehearse(out: Path) -> None:
    """Do as `render` will do: write next to `out` and move it there. Permissions are not enough (/proc, mounts)."""
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        probe = Path(scratch) / Path(scratch).name
        probe.touch()
        moved = out / probe.name
        try:
            probe.replace(moved)
        finally:
            moved.unlink(missing_ok=True)


def _reason(error: OSError) -> str:
    if error.errno == errno.EXDEV:
        return "a mounted folder can't be replaced; choose one inside it"
    return f"no folder can be made there ({error.strerror})"
