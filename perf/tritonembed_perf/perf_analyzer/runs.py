"""One run of perf_analyzer: its input, its command, its export."""

import csv
import io
import json
import os
import random
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tritonembed_perf.failures import BenchError
from tritonembed_perf.perf_analyzer.binary import Program
from tritonembed_perf.perf_analyzer.scenarios import Scenario, Shape
from tritonembed_perf.run.corpus import WordTexts
from tritonembed_perf.run.kserve import ENSEMBLE

REQUESTS_PREPARED = 32
MICROSECONDS = 1e3
ANY_SPREAD = 999
"""Percent by which windows may differ: how long is measured is the scenario's to say, not how calm the machine is."""

PATIENCE = 4
ASYNC_FROM = 16
"""From so many requests in flight on perf_analyzer gets by with fewer threads than requests."""


@dataclass(frozen=True)
class Point:
    """What perf_analyzer measured at one value of the load. Latencies and stages in milliseconds."""

    target: str
    shape: Shape
    value: int
    requests_per_second: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    queue_ms: float
    compute_ms: float

    @property
    def sentences_per_second(self) -> float:
        """perf_analyzer calls them inferences."""
        return self.requests_per_second * self.shape.sentences

    @property
    def tokens_per_second(self) -> float:
        """Every sentence has exactly the shape's tokens."""
        return self.sentences_per_second * self.shape.tokens


def write_input(path: Path, words: WordTexts, shape: Shape) -> None:
    """perf_analyzer's input JSON: a sentence an entry, of which it takes as many for a request as its batch size."""
    count = REQUESTS_PREPARED * shape.sentences
    texts = words.of_lengths([shape.tokens] * count, random.Random(shape.tokens))
    path.write_text(json.dumps({"data": [{"text": [text]} for text in texts]}))


def command_line(
    program: Path, server: str, input_path: Path, scenario: Scenario, shape: Shape, value: int
) -> list[str]:
    """Without the export, which is where the caller wants it."""
    command = [str(program), "-m", ENSEMBLE, "-i", "grpc", "-u", server, "-b", str(shape.sentences)]
    command += ["--input-data", str(input_path), "-p", str(round(scenario.window_seconds * 1000))]
    command += ["-s", str(ANY_SPREAD), "-r", str(scenario.windows)]
    if scenario.load == "concurrency":
        command += ["--concurrency-range", str(value)]
        return [*command, "--async"] if value >= ASYNC_FROM else command
    return [*command, "--request-rate-range", str(value), "--request-distribution", "poisson", "--async"]


def run_point(
    program: Program, command: Sequence[str], scenario: Scenario, target: str, shape: Shape, value: int
) -> Point:
    """Run it to its end. Raises BenchError with perf_analyzer's own words."""
    with tempfile.TemporaryDirectory() as folder:
        export = Path(folder) / "export.csv"
        limit = PATIENCE * scenario.windows * scenario.window_seconds + 120
        try:
            done = subprocess.run(
                [*command, "-f", str(export), "--verbose-csv"],
                env=os.environ | program.environment,
                capture_output=True,
                text=True,
                timeout=limit,
            )
        except subprocess.TimeoutExpired:
            raise BenchError(f"perf_analyzer did not end within {limit:.0f} s") from None
        if done.returncode or not export.exists():
            errors, others = (
                [line.strip() for line in text.splitlines() if line.strip()] for text in (done.stderr, done.stdout)
            )
            last = (errors or others or [f"exit code {done.returncode} without a word"])[-1]
            reason = next((line for line in errors + others if line.lower().startswith(("error", "failed"))), last)
            raise BenchError(f"perf_analyzer, {target}, {shape.name}, {scenario.load} {value}: {reason}")
        return read_export(export.read_text(), target, shape, value)


def read_export(text: str, target: str, shape: Shape, value: int) -> Point:
    """The one line of a CSV that perf_analyzer wrote with --verbose-csv."""
    row = next(iter(csv.DictReader(io.StringIO(text))))

    def milliseconds(*columns: str) -> float:
        return sum(float(row[column]) for column in columns) / MICROSECONDS

    return Point(
        target,
        shape,
        value,
        float(row["Inferences/Second"]) / shape.sentences,
        milliseconds("p50 latency"),
        milliseconds("p90 latency"),
        milliseconds("p99 latency"),
        milliseconds("Server Queue"),
        milliseconds("Server Compute Input", "Server Compute Infer", "Server Compute Output"),
    )
