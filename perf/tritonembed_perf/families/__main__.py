"""Write every family of models, embed with both, compare: the command.

python -m tritonembed_perf.families --only "bert_*" --out results -j 2
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from tritonembed_perf.families.registry import FamilyCase, load_cases, select
from tritonembed_perf.families.verdicts import CaseResult, Row, compare, cosine_text, judge, summary, write_results
from tritonembed_perf.families.zygote import Zygote

SECONDS = 300.0


def main() -> int:
    """The exit code: 1 if a case is wrong, 2 if there is no such case."""
    options = _options()
    cases = list(select(load_cases(), options.only))
    if not cases:
        print("error: no case matches", file=sys.stderr)
        return 2
    if options.list:
        print("\n".join(f"{case.name:36} {case.family}" for case in cases))
        return 0
    with ExitStack() as stack:
        work = options.keep_folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="families-")))
        work.mkdir(parents=True, exist_ok=True)
        rows = []
        for row in _progress(_run_all(cases, work, options), len(cases)):
            rows.append(row)
            if options.out:
                order = {case.name: place for place, case in enumerate(cases)}
                write_results(sorted(rows, key=lambda row: order[row.name]), options.out)
    print(summary(rows))
    return int(any(row.verdict is CaseResult.WRONG for row in rows))


def _options() -> Any:
    parser = argparse.ArgumentParser(prog="python -m tritonembed_perf.families", description=__doc__)
    parser.add_argument(
        "--only", action="append", default=[], metavar="PATTERN", help="name or family, as a shell pattern"
    )
    parser.add_argument("--out", type=Path, help="folder for models.md and models.json")
    parser.add_argument("--list", action="store_true", help="print the cases and end")
    parser.add_argument("-j", "--jobs", type=int, default=1, help="cases at once")
    parser.add_argument("--keep-folder", type=Path, metavar="FOLDER", help="keep models, vectors and logs in it")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time limit of each side of a case")
    return parser.parse_args()


def _run_all(cases: list[FamilyCase], work: Path, options: Any) -> Iterator[Row]:
    """Yield rows as cases finish. Each worker has one process for the reference and one for the engine."""
    with ExitStack() as stack:
        free: SimpleQueue[tuple[Zygote, Zygote]] = SimpleQueue()
        for _ in range(min(options.jobs, len(cases))):
            free.put((stack.enter_context(Zygote("reference")), stack.enter_context(Zygote("serving"))))

        def run(case: FamilyCase) -> Row:
            zygotes = free.get()
            try:
                return _run(case, work, zygotes, options)
            finally:
                free.put(zygotes)

        pool = stack.enter_context(ThreadPoolExecutor(options.jobs))
        yield from pool.map(run, cases)


def _run(case: FamilyCase, work: Path, zygotes: tuple[Zygote, Zygote], options: Any) -> Row:
    started = time.monotonic()
    place = work / case.name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    # The engine's messages name the last part of the path: the case.
    folder = place / case.name
    expected, found = place / "reference.npz", place / "served.npz"
    job = {"case": case.name, "folder": str(folder), "vectors": str(expected)}
    reference = zygotes[0].ask(job, place / "reference.log", options.seconds)
    served = {}
    if "crashed" not in reference:
        asked = {"folder": str(folder), "vllm": case.engine_arguments, "vectors": str(found)}
        served = zygotes[1].ask(asked, place / "served.log", options.seconds)
    cosine = None
    if judged := judge(reference, served, case.must_refuse):
        verdict, detail = judged
    else:
        verdict, detail, cosine = compare(dict(np.load(expected)), dict(np.load(found)), case.cosine)
    if not options.keep_folder:
        shutil.rmtree(place)
    seconds = time.monotonic() - started
    executor = served.get("executor", "")
    return Row(case.name, case.family, verdict, detail, cosine, executor, case.engine_arguments, seconds)


def _progress(rows: Iterator[Row], total: int) -> Iterator[Row]:
    """Print each row as it comes, under a progress bar on a terminal."""
    if not sys.stdout.isatty():
        for row in rows:
            print(_line(row), flush=True)
            yield row
        return
    from rich.progress import Progress

    with Progress() as progress:
        task = progress.add_task("cases", total=total)
        for row in rows:
            progress.console.print(_line(row), highlight=False, markup=False)
            progress.advance(task)
            yield row


def _line(row: Row) -> str:
    parts = [f"{row.name:32}", f"{row.family:18}", f"{row.verdict.value:12}", f"{row.executor:9}", cosine_text(row)]
    return " ".join([*parts, row.detail])


if __name__ == "__main__":
    sys.exit(main())
