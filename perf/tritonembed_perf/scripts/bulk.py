"""`tritonembed bulk`: its rate beside the engine's own, its scaling, and its memory.

    python -m tritonembed_perf.scripts.bulk generate FILE --rows 1000000
    python -m tritonembed_perf.scripts.bulk against-engine MODEL FILE [--device cuda] [--rounds 3]
    python -m tritonembed_perf.scripts.bulk scaling [--workers 1,2,4,8,16,32,64]
    python -m tritonembed_perf.scripts.bulk memory [--rows 100000,10000000]

`generate`: rows with the lengths of MS MARCO's passages: log-normal, 68 tokens on average, at most 256.
`against-engine`: in each round the engine alone embeds the file's rows, whose ids are ready; then `tritonembed bulk`
does all, from Parquet to Parquet. Its rate counts from the first part that it commits to the last; that of the whole
command, with Ray's start and the model's, is shown beside it. Each runs in processes of its own. `scaling` and
`memory`: with an executor that sleeps.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

import numpy as np
import psutil  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.parquet as pq
from typer import Argument, Option

from tritonembed_bulk.cluster import ray_running
from tritonembed_bulk.files import find_files
from tritonembed_bulk.job import Job, Run, Workers
from tritonembed_bulk.parts import Ledger, Record
from tritonembed_bulk.rows import Columns
from tritonembed_bulk.sinks import ParquetSink
from tritonembed_bulk.store import Store
from tritonembed_perf.failures import BenchError
from tritonembed_perf.options import Model, run_script
from tritonembed_perf.sleeping import SleepingCompute

MEAN_TOKENS, SPREAD, MOST_TOKENS, SPECIAL = 68, 0.42, 256, 2
ROWS_AT_ONCE = 16384
REQUEST = 1024
"""Sentences per request, in the measurement of the engine alone."""
WAITING = 48
"""Requests in flight, in the measurement of the engine alone."""
PARTS_PER_WORKER = 7

File = Annotated[Path, Argument(help="A Parquet file of `generate`.")]


def lengths(rows: int, rng: np.random.Generator) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """Tokens of each row, special tokens included."""
    drawn = rng.lognormal(np.log(MEAN_TOKENS) - SPREAD**2 / 2, SPREAD, rows)
    found: np.ndarray[Any, np.dtype[np.int64]] = np.clip(np.rint(drawn), SPECIAL + 1, MOST_TOKENS).astype(np.int64)
    return found


def generate(
    file: Annotated[Path, Argument(help="The Parquet file to write.")],
    rows: Annotated[int, Option(help="Number of rows.")] = 1_000_000,
    group: Annotated[int, Option(help="Rows of a row group.")] = ROWS_AT_ONCE,
) -> dict[str, Any]:
    """Write rows of random English words, one token each in bert-base-uncased."""
    rng = np.random.default_rng(0)
    words = np.array(_words(), object)
    schema = pa.schema([("id", pa.int64()), ("text", pa.string())])
    tokens = 0
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for start in range(0, rows, group):
            counts = lengths(min(group, rows - start), rng)
            tokens += int(counts.sum())
            chosen = words[rng.integers(0, len(words), int((counts - SPECIAL).sum()))]
            ends = np.cumsum(counts - SPECIAL)
            texts = [" ".join(part) for part in np.split(chosen, ends[:-1])]
            ids = range(start, start + len(texts))
            writer.write_table(pa.table([pa.array(ids, pa.int64()), texts], schema=schema), row_group_size=group)
    print(f"{rows} rows, {tokens} tokens, {tokens / rows:.1f} per row", flush=True)
    return {"rows": rows, "tokens": tokens}


def against_engine(
    model: Model,
    file: File,
    device: Annotated[Literal["cpu", "cuda"], Option()] = "cpu",
    rounds: Annotated[int, Option(help="Medians count.")] = 3,
    part_rows: Annotated[int, Option(help="As of bulk.")] = 16384,
    executor: Annotated[str, Option(help="As of bulk.")] = "auto",
) -> dict[str, Any]:
    """Tokens per second of the engine alone and of `tritonembed bulk`, in turn."""
    rows = []
    for number in range(rounds):
        alone = _in_process("engine-alone", model, file, "--device", device, "--executor", executor)
        whole = _bulk(model, file, device, part_rows, executor)
        row = {"engine": alone["tokens_per_second"], **whole}
        row["ratio"] = row["bulk"] / row["engine"]
        rows.append(row)
        print(
            f"round {number + 1}: engine {row['engine']:,.0f} tokens/s, bulk {row['bulk']:,.0f} ({row['ratio']:.3f}), "
            f"whole command {row['whole']:,.0f}; executors busy {row['busy']:.0%}; {row['tokens']} tokens",
            flush=True,
        )
        if alone["tokens"] != row["tokens"]:
            raise BenchError(f"the engine alone had {alone['tokens']} tokens, bulk {row['tokens']}")
    ratio = median(row["ratio"] for row in rows)
    print(f"median: bulk has {ratio:.3f} of the engine's rate", flush=True)
    return {"rows": rows, "ratio": ratio, "load": os.getloadavg()}


def engine_alone(
    model: Model,
    file: File,
    device: Annotated[Literal["cpu", "cuda"], Option()] = "cpu",
    executor: Annotated[str, Option(help="As of bulk.")] = "auto",
) -> dict[str, Any]:
    """Tokens per second of the engine, for `against-engine`."""
    from tritonembed_engine.stub.process import prepare_process

    prepare_process(os.environ.get("CUDA_VISIBLE_DEVICES", "0") if device == "cuda" else None)
    from tritonembed_engine.factory import create_engine
    from tritonembed_engine.model.files import read_model_files
    from tritonembed_engine.parameters import DEFAULTS
    from tritonembed_engine.settings import ModelSettings
    from tritonembed_engine.tokenizing.text_tokenizer import TextTokenizer

    settings = ModelSettings.model_validate({"model": model, "engine": {"executor": executor, "reference": "off"}})
    files = read_model_files(model)
    tokenizer = TextTokenizer(files)
    texts = pq.read_table(file, columns=["text"])["text"].cast(pa.binary()).to_pylist()
    [ids] = tokenizer.encode_requests([(texts, DEFAULTS)])
    if isinstance(ids, Exception):
        raise BenchError(str(ids))
    engine = create_engine(settings, files, device)
    requests = [ids[start : start + REQUEST] for start in range(0, len(ids), REQUEST)]
    for future in [engine.submit(request) for request in requests[:4]]:
        future.result()
    start = time.perf_counter()
    waiting: list[Future[Any]] = []
    for request in requests:
        if len(waiting) == WAITING:
            waiting.pop(0).result()
        waiting.append(engine.submit(request))
    for future in waiting:
        future.result()
    seconds = time.perf_counter() - start
    tokens = sum(map(len, ids)) // 4
    print(f"engine alone: {tokens} tokens in {seconds:.2f} s, {tokens / seconds:,.0f} tokens/s", flush=True)
    return {"tokens": tokens, "tokens_per_second": tokens / seconds}


def _in_process(*arguments: object) -> dict[str, Any]:
    """Run a measurement of this script in a process of its own; its results."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-m", "tritonembed_perf.scripts.bulk", *map(str, arguments), "--json", str(result)]
        subprocess.run(command, check=True)
        found: dict[str, Any] = json.loads(result.read_text())
        return found


def _bulk(model: str, file: Path, device: str, part_rows: int, executor: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        options = ["--model", model, "--device", device, "--executor", executor, "--no-reference", "--id-column", "id"]
        command = [sys.executable, "-c", "from tritonembed.cli import main; main()", "bulk", str(file), folder]
        start = time.perf_counter()
        subprocess.run([*command, *options, "--part-rows", str(part_rows)], check=True)
        seconds = time.perf_counter() - start
        [report] = Path(folder, "_tritonembed", "reports").glob("*.json")
        found = json.loads(report.read_text())
    points = found["rate"][1:]
    if len(points) < 3:
        raise BenchError("the file has too few parts: give it more rows, or a smaller --part-rows")
    passed = points[-1]["seconds"] - points[0]["seconds"]
    tokens = found["figures"]["tokens"]
    return {
        "bulk": (points[-1]["tokens"] - points[0]["tokens"]) / passed,
        "whole": tokens / seconds,
        "tokens": tokens,
        "busy": found["figures"]["busy"],
    }


def scaling(
    workers: Annotated[str, Option(help="Numbers of workers, with commas.")] = "1,2,4,8,16,32,64",
    rows: Annotated[int, Option(help="Rows of a part.")] = 1024,
    part_seconds: Annotated[float, Option(help="That a worker sleeps for a part.")] = 12.0,
) -> dict[str, Any]:
    """Parts per second by the number of workers whose executor sleeps, once all of them have begun.

    Beside it the CPU seconds of a part, of all processes: what limits one machine, on which the whole cluster is here.
    """
    found: list[dict[str, Any]] = []
    for count in map(int, workers.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            source, log = Path(folder) / "source.parquet", Path(folder) / "log"
            log.mkdir()
            _short_rows(source, rows * count * PARTS_PER_WORKER, rows)
            compute = SleepingCompute(seconds_per_token=part_seconds / rows / MEAN_TOKENS, log=str(log))
            points: list[tuple[float, float]] = []
            with ray_running(None, dashboard=False, cpus=count // 10 + 3):
                for at, _ in _timed(_job(source, folder, compute, rows), Workers(count, 0.1)):
                    points.append((at, cpu_seconds()))
            row = {"workers": count, **_steady(count, points, _all_begun(log), part_seconds)}
        found.append(row)
        print(
            f"{count:>3} workers: {row['parts_per_second']:7.3f} parts/s of {row['ideal']:7.3f}: "
            f"{row['efficiency']:.3f}; {row['cpu_seconds_per_part']:.3f} CPU s per part",
            flush=True,
        )
    return {"part_seconds": part_seconds, "rows": found, "load": os.getloadavg()}


def _all_begun(log: Path) -> float:
    """When the last worker began its first part."""
    first: dict[str, int] = {}
    for entry in log.iterdir():
        _, process, at = entry.name.split()
        first[process] = min(first.get(process, int(at)), int(at))
    return max(first.values()) / 1e9


def _steady(count: int, points: list[tuple[float, float]], begun: float, part_seconds: float) -> dict[str, float]:
    """The rate between two commits, between which each worker committed the same number of parts: workers that began
    together commit together. The end is left out, because some workers have no part left then."""
    begin = next(place for place, (at, _) in enumerate(points) if at > begun)
    parts = (len(points) - 1 - count - begin) // count * count
    if parts < count:
        raise BenchError("the workers' start took too long: give parts more seconds")
    (start, cpu), (end, cpu_end) = points[begin], points[begin + parts]
    rate, ideal = parts / (end - start), count / part_seconds
    return {
        "parts_per_second": rate,
        "ideal": ideal,
        "efficiency": rate / ideal,
        "parts": parts,
        "cpu_seconds_per_part": (cpu_end - cpu) / parts,
    }


def memory(
    rows: Annotated[str, Option(help="Numbers of rows, with commas.")] = "100000,10000000",
) -> dict[str, Any]:
    """The most memory that a job's processes have at a time, by the number of rows, with an executor that sleeps."""
    found: list[dict[str, Any]] = []
    for count in map(int, rows.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "source.parquet"
            _short_rows(source, count, ROWS_AT_ONCE)
            with ray_running(None, dashboard=False), _watched() as peaks:
                job = _job(source, folder, SleepingCompute(), 4096)
                done = sum(record.rows for _, record in _timed(job, Workers(1)))
        if done != count:
            raise BenchError(f"{done} rows of {count} were embedded")
        found.append({"rows": count, **peaks})
        mib = {name: round(size / 2**20) for name, size in peaks.items()}
        print(f"{count:>9} rows: driver {mib['driver']} MiB, all processes {mib['all']} MiB", flush=True)
    return {"rows": found}


def _timed(job: Job, workers: Workers) -> Iterator[tuple[float, Record]]:
    with Run(job, resume=False) as run:
        for record in run.records(workers):
            yield time.perf_counter(), record


def _job(source: Path, folder: str, compute: SleepingCompute, part_rows: int) -> Job:
    ledger = Ledger(Store(f"{folder}/out"))
    return Job(find_files(str(source)), ParquetSink(ledger.store), ledger, compute, Columns(id="id"), part_rows)


def _short_rows(file: Path, rows: int, group: int) -> None:
    schema = pa.schema([("id", pa.int64()), ("text", pa.string())])
    with pq.ParquetWriter(file, schema) as writer:
        for start in range(0, rows, group):
            ids = pa.array(range(start, min(start + group, rows)), pa.int64())
            writer.write_table(pa.table([ids, ids.cast(pa.string())], schema=schema))


@contextmanager
def _watched() -> Iterator[dict[str, int]]:
    """The peaks of unique memory (USS) while entered, in bytes: of this process, and of it with its descendants."""
    peaks = {"driver": 0, "all": 0}
    ended = threading.Event()

    def watch() -> None:
        own = psutil.Process()
        while not ended.wait(1.0):
            driver, others = _unique(own), sum(map(_unique, own.children(recursive=True)))
            peaks["driver"] = max(peaks["driver"], driver)
            peaks["all"] = max(peaks["all"], driver + others)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        ended.set()
        thread.join()


def cpu_seconds() -> float:
    """CPU seconds of this process and its descendants so far."""
    own = psutil.Process()
    total = 0.0
    for process in (own, *own.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


def _unique(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().uss)
    except psutil.Error:
        return 0


def _words() -> list[str]:
    """Whole words that are one token each."""
    from tritonembed_perf.models import BERT_TOKENIZER

    vocabulary = json.loads(Path(BERT_TOKENIZER).read_text())["model"]["vocab"]
    return sorted(word for word in vocabulary if word.isascii() and word.isalpha() and len(word) > 2)


MEASUREMENTS: tuple[Callable[..., dict[str, Any]], ...] = (generate, against_engine, engine_alone, scaling, memory)

if __name__ == "__main__":
    run_script("bulk", __doc__, *MEASUREMENTS)
