"""Tokens per second by load, of several reports of `load throughput` or `engine speed`, as a chart.

    python -m tritonembed_perf.scripts.chart OUT "NAME=REPORT.json" ... [--title TITLE]

OUT.png and OUT.svg are written; a report without a load leaves a gap there.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from tritonembed_perf.reports import grouped_bars


def main() -> None:
    """Draw the chart."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("reports", nargs="+", metavar="NAME=REPORT.json")
    parser.add_argument("--title", default="tokens/s")
    options = parser.parse_args()
    named = dict(report.split("=", 1) for report in options.reports)
    rates = {name: rates_of(json.loads(Path(path).read_text())) for name, path in named.items()}
    loads = list(dict.fromkeys(load for of_one in rates.values() for load in of_one))
    series = {name: [of_one.get(load) for load in loads] for name, of_one in rates.items()}
    grouped_bars(options.out, options.title, loads, series)


def rates_of(report: dict[str, Any]) -> dict[str, float]:
    """Tokens per second by load, or by sentences x tokens of a batch."""
    return {
        row.get("load") or f"{row['sentences']} x {row['tokens']}": row["tokens_per_second"] for row in report["rows"]
    }


if __name__ == "__main__":
    main()
