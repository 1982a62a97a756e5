"""The report of one run or of several: JSON for machines, Markdown and charts for people."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tritonembed_perf.compare.results import Result, merge, to_json
from tritonembed_perf.compare.tables import markdown, show
from tritonembed_perf.compare.trials import Trial
from tritonembed_perf.failures import UsageError
from tritonembed_perf.run.environment import machine_line

JSON, MARKDOWN = "compare.json", "compare.md"


def make_report(
    environment: dict[str, Any], model: str, dtype: str, device: str, finished: bool, trials: Sequence[Trial]
) -> dict[str, Any]:
    """All but the systems. environment: as run/environment.py describes it."""
    run = {**environment, "machine_line": machine_line(environment["machine"]), "interrupted": not finished}
    names = [trial.name for trial in trials]
    return {"model": model, "dtype": dtype, "device": device, "trials": names, "runs": [run]}


def read_report(option: str, path: Path) -> tuple[dict[str, Any], list[Result]]:
    """Of what `publish` wrote. option: that named it. Raises UsageError."""
    try:
        report = json.loads(path.read_text())
        results = [Result.from_json(entry) for entry in report.pop("systems")]
        for key in ("model", "dtype", "device", "runs"):
            report[key]
        [Trial.parse(name) for name in report["trials"]]
    except OSError as error:
        raise UsageError(f"{option}: {path.name}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"{option}: {path.name} is no report of `tritonembed-bench compare`") from None
    return report, results


def merge_reports(read: Sequence[tuple[dict[str, Any], list[Result]]]) -> tuple[dict[str, Any], list[Result]]:
    """One report. Raises UsageError where they are about different models, precisions or machines."""
    first = read[0][0]
    for report, _ in read[1:]:
        for key in ("model", "dtype", "device"):
            if report[key] != first[key]:
                raise UsageError(f"--merge: {key} is {first[key]} in one file and {report[key]} in another")
    runs = [run for report, _ in read for run in report["runs"]]
    machines = {run["machine_line"] for run in runs}
    if len(machines) > 1:
        raise UsageError(f"--merge: these are different machines: {'; '.join(sorted(machines))}")
    trials = list(dict.fromkeys(name for report, _ in read for name in report["trials"]))
    return {**first, "trials": trials, "runs": runs}, merge([results for _, results in read])


def publish(report: dict[str, Any], results: Sequence[Result], folder: Path | None) -> None:
    """Show the tables; write everything to the folder, where one is given."""
    trials = [Trial.parse(name) for name in report["trials"]]
    show(trials, results)
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / JSON).write_text(json.dumps({**report, "systems": to_json(results)}, indent=1) + "\n")
    (folder / MARKDOWN).write_text(markdown(report, trials, results))
    try:
        from tritonembed_perf.compare.charts import plot

        plot(folder, trials, results)
    except ImportError as error:
        # The figures are worth more; another machine can draw them with --merge.
        print(f"no charts: {error}")
