"""`tritonembed-bench perf-analyzer`: NVIDIA's load generator against Triton and against the manager, side by side."""

import csv
import ctypes
import json
import os
import platform
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tritonembed_manager.tune.loadgen.load import key_metadata
from tritonembed_manager.tune.loads import LoadShape, WordTexts
from tritonembed_perf.failures import BenchError, UsageError, end_interrupted
from tritonembed_perf.loadgen.requests import parse_loads
from tritonembed_perf.loadgen.target import check_loads, read_tokenizer
from tritonembed_perf.reports import begin_report, cache_folder, check_output, print_table, write_report
from tritonembed_perf.server import running_manager, running_server
from tritonembed_perf.settings import WINDOWS, AnalyzerSettings

PROGRAM = "perf_analyzer"
WHEELS = (((2, 38), "2.60.0"), ((2, 17), "2.50.0"))
"""Which tritonclient's perf_analyzer runs from which glibc on; later wheels have none."""

LIBRARIES = ("libb64.so.0d", "libcudart.so.12")
"""What the program is linked with and most machines lack."""

TEXTS_PREPARED = 32
"""Requests with different texts."""

ANY_SPREAD = 999
"""Percent by which windows may differ: WINDOWS sets how long is measured, not the noise of the machine."""

ASYNC_FROM = 16
"""From this many requests in flight on, perf_analyzer needs fewer threads than requests."""

PATIENCE_S = 120
LATENCIES = ("p50", "p90", "p99")
COMPUTE = ("Server Compute Input", "Server Compute Infer", "Server Compute Output")


def analyze(settings: AnalyzerSettings, arguments: Sequence[str]) -> None:
    """Measure each load on each target, show the table, write the report.

    arguments: of the servers that are started. Raises BenchError, and KeyboardInterrupt after Ctrl-C.
    """
    loads = parse_loads(settings.loads)
    check_output("--json", settings.json_path)
    files, tokenizer = read_tokenizer(settings.model)
    # All targets first: a fault of the second would otherwise be found after an hour on the first.
    for target, address in settings.targets.items():
        check_loads(loads, files, tokenizer, address, settings.key_for(target))
    program = find_program(settings.program)
    words = WordTexts(tokenizer)
    report = begin_report()
    rows: list[dict[str, Any]] = []
    interrupted = False
    try:
        for target, address in settings.targets.items():
            with _started(target, address, settings.model, arguments) as running:
                for load in loads:
                    rows.append(_measure(program, running, target, load, words, settings))
    except KeyboardInterrupt:
        interrupted = True
    finally:
        # What was measured before a failure is worth showing.
        if rows:
            _show(rows)
            write_report(settings.json_path, {**report, "interrupted": interrupted, "rows": rows})
    if interrupted:
        end_interrupted()


@contextmanager
def _started(target: str, address: str | None, model: str, arguments: Sequence[str]) -> Iterator[str]:
    """Where the target listens; it is started if no address was given."""
    if address is not None:
        yield address
        return
    start = running_server if target == "triton" else running_manager
    with start(model, arguments) as running:
        yield running.target


def _measure(
    program: "Program", server: str, target: str, load: LoadShape, words: WordTexts, settings: AnalyzerSettings
) -> dict[str, Any]:
    """The row of one load on one target; the command line is printed. Raises BenchError with its own message."""
    try:
        figures = run_analyzer(program, server, load, words, settings.seconds, key=settings.key_for(target), shown=True)
    except BenchError as error:
        raise BenchError(f"perf_analyzer, {target}, {load}: {error}") from None
    return {"target": target, "load": str(load), **figures}


def run_analyzer(
    program: "Program",
    server: str,
    load: LoadShape,
    words: WordTexts,
    seconds: float,
    *,
    key: str | None = None,
    shown: bool = False,
) -> dict[str, float]:
    """Measure one load on a server at host:port; the figures of `read_export`. Raises BenchError.

    seconds: per window. key: of the server's API. shown: whether the command line is printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        texts, export = Path(folder) / "texts.json", Path(folder) / "export.csv"
        write_input(texts, words, load)
        command = command_line(program.path, server, texts, load, seconds)
        if shown:
            print(shlex.join(Path(word).name if word.startswith("/") else word for word in command), flush=True)
        command += ["-f", str(export), "--verbose-csv"]
        # After the command line was shown, because the key is secret.
        for name, value in key_metadata(key):
            command += ["-H", f"{name}:{value}"]
        limit = PATIENCE_S + 4 * WINDOWS * seconds
        try:
            done = subprocess.run(
                command, env=os.environ | program.environment, capture_output=True, text=True, timeout=limit
            )
        except subprocess.TimeoutExpired:
            raise BenchError(f"it did not end within {limit:.0f} s") from None
        if done.returncode or not export.exists():
            errors, others = (list(filter(str.strip, text.splitlines())) for text in (done.stderr, done.stdout))
            last = (errors or others or [f"exit code {done.returncode} without a word"])[-1]
            reason = next((line for line in errors + others if line.lower().startswith(("error", "failed"))), last)
            raise BenchError(reason.strip())
        return read_export(export.read_text(), load)


def write_input(path: Path, words: WordTexts, load: LoadShape) -> None:
    """perf_analyzer's input JSON: a sentence per entry; a request takes as many as its batch size."""
    texts = words.of_lengths([load.tokens] * TEXTS_PREPARED * load.sentences, random.Random(load.tokens))
    path.write_text(json.dumps({"data": [{"text": [text]} for text in texts]}))


def command_line(program: Path, server: str, texts: Path, load: LoadShape, seconds: float) -> list[str]:
    """The command line, without the path of the export, which the caller adds."""
    command = [str(program), "-m", "embedding", "-i", "grpc", "-u", server, "-b", str(load.sentences)]
    command += ["--input-data", str(texts), "-p", str(round(seconds * 1000)), "-s", str(ANY_SPREAD)]
    command += ["-r", str(WINDOWS), "--concurrency-range", str(load.at_once)]
    return [*command, "--async"] if load.at_once >= ASYNC_FROM else command


def read_export(text: str, load: LoadShape) -> dict[str, float]:
    """The one line of a CSV that perf_analyzer wrote with --verbose-csv: its inferences are sentences."""
    row = next(csv.DictReader(text.splitlines()))
    sentences = float(row["Inferences/Second"])
    return {
        "requests_per_second": sentences / load.sentences,
        "tokens_per_second": sentences * load.tokens,
        **{f"{name}_ms": float(row[f"{name} latency"]) / 1e3 for name in LATENCIES},
        "queue_ms": float(row["Server Queue"]) / 1e3,
        "compute_ms": sum(float(row[column]) for column in COMPUTE) / 1e3,
    }


def _show(rows: Sequence[dict[str, Any]]) -> None:
    """Print a table, with the targets of a load under each other."""
    loads = list(dict.fromkeys(row["load"] for row in rows))
    cells = []
    for row in sorted(rows, key=lambda row: loads.index(row["load"])):
        speed = [f"{row['requests_per_second']:,.1f}", f"{row['tokens_per_second']:,.0f}"]
        cells.append([row["load"], row["target"], *speed, *(f"{row[f'{name}_ms']:,.2f}" for name in LATENCIES)])
    print_table(
        ["load", "target", "requests/s", "tokens/s", *(f"{name}, ms" for name in LATENCIES)], cells, left=(0, 1)
    )


@dataclass(frozen=True)
class Program:
    """A perf_analyzer that starts. environment: variables it needs in addition to the inherited ones."""

    path: Path
    environment: dict[str, str] = field(default_factory=dict)


def find_program(given: Path | None) -> Program:
    """`given`, else on PATH, else in the cache, where pip installs a wheel that has it.

    Raises UsageError if there is none.
    """
    found = shutil.which(given or PROGRAM)
    if found is not None:
        return Program(Path(found))
    if given is not None:
        raise UsageError(f"--perf-analyzer: {given} is not a program")
    version = wheel_for(platform.libc_ver()[1])
    folder = cache_folder() / f"{PROGRAM}-{version}"
    if not (folder / "bin" / PROGRAM).exists():
        _install(version, folder)
    libraries = [str(_link_libraries(folder / "lib")), os.environ.get("LD_LIBRARY_PATH", "")]
    return Program(folder / "bin" / PROGRAM, {"LD_LIBRARY_PATH": ":".join(filter(None, libraries))})


def wheel_for(glibc: str) -> str:
    """The tritonclient whose perf_analyzer runs with this glibc. Raises UsageError."""
    parts = glibc.split(".")
    have = tuple(map(int, parts)) if all(part.isdecimal() for part in parts) else ()
    for needed, version in WHEELS:
        if have >= needed:
            return version
    raise UsageError(f"no {PROGRAM} on PATH, and no wheel has one for this C library: name one with --perf-analyzer")


def _install(version: str, folder: Path) -> None:
    """Install the wheel alone, whose program is a script for pip."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run(
        [*command, "--target", str(folder), f"tritonclient=={version}"], capture_output=True, text=True
    )
    if done.returncode or not (folder / "bin" / PROGRAM).exists():
        shutil.rmtree(folder, ignore_errors=True)
        raise UsageError(
            f"no {PROGRAM} on PATH, and pip can't fetch tritonclient {version}, whose wheel has one: "
            "name one with --perf-analyzer"
        )


def _link_libraries(folder: Path) -> Path:
    """A folder with the libraries under the names that the program asks for; those of the system need no link."""
    folder.mkdir(exist_ok=True)
    for name in LIBRARIES:
        link = folder / name
        if link.exists():
            continue
        link.unlink(missing_ok=True)
        if (bundled := _bundled(name)) is not None:
            link.symlink_to(bundled)
        elif not _loads(name):
            raise UsageError(f"{PROGRAM} needs {name}: pip install --no-deps nvidia-pytriton, whose wheel has it")
    return folder


def _bundled(name: str) -> Path | None:
    """nvidia-pytriton carries them with a hash in the name: libb64-98cb6333.so.0d."""
    spec = find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        return None
    stem, _, version = name.partition(".so.")
    folder = Path(next(iter(spec.submodule_search_locations))).parent / "nvidia_pytriton.libs"
    return next(iter(sorted(folder.glob(f"{stem}-*.so.{version}*"))), None)


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True
