"""Charts as PNG and SVG, readable on a light page and on a dark one: no background, and colours between the two."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

INK = "#757b83"
"""Text and axes: a contrast of 4.2 on white and of 4.5 on GitHub's dark page."""

COLOURS = ("#3f87d9", "#dd7f2e", "#2fa37c", "#b266c9", "#c4961a", "#d9566b", "#4aa8bd", "#8a8f98", "#7d6fd1")
INCHES_PER_GROUP = 1.6


@contextmanager
def chart(path: Path, title: str, *, width: float = 8.0, height: float = 4.2) -> Iterator[Any]:
    """Axes to draw on; at the end `path` with .png and with .svg is written.

    The same data make the same SVG, so that a repeated run shows no difference where there is none.
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
