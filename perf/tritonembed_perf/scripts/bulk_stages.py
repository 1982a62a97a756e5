"""The cost of the stages of `tritonembed bulk --model` other than the model: rows per second of a core.

    python -m tritonembed_perf.scripts.bulk_stages stages MODEL FILE [--rate 44000]
    python -m tritonembed_perf.scripts.bulk_stages pipeline MODEL FILE

FILE is one of `bulk generate`. The executor computes nothing: it gives zeros at once. `stages`: each stage alone, in
this process, one part at a time, by CPU seconds, so that other work of the machine counts little; and the cores that it
takes at a rate. `pipeline`: the job through Ray, by the CPU seconds of all its processes.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from typer import Option

from tritonembed_bulk.batches import BatchRunner
from tritonembed_bulk.cluster import ray_running
from tritonembed_bulk.files import find_files
from tritonembed_bulk.job import Job, Run, Workers
from tritonembed_bulk.model_workers import ModelCompute
from tritonembed_bulk.parts import Ledger
from tritonembed_bulk.rows import Columns, Work
from tritonembed_bulk.sinks import ParquetSink, output_table, parquet_bytes
from tritonembed_bulk.store import Store
from tritonembed_engine.parameters import DEFAULTS
from tritonembed_engine.settings import ModelSettings
from tritonembed_engine.token_ids import TokenIds
from tritonembed_perf.options import Model, run_script
from tritonembed_perf.scripts.bulk import File, cpu_seconds

DIMENSIONS = 768
ROUNDS = 5

T = TypeVar("T")


class Zeros:
    """An executor of BERT-base's size that computes nothing."""

    dimensions = DIMENSIONS
    max_batch_tokens = 65536
    max_batch_sentences = 1024
    depth = 2
    dtype = "float32"

    def launch(self, batch: TokenIds, skips: Any) -> "Batch":  # noqa: ARG002
        """See `Executor`."""
        return Batch(len(batch.lengths))


@dataclass
class Batch:
    """A batch that is computed already."""

    sentences: int

    def result(self) -> Any:
        """See `Pending`."""
        return np.zeros((self.sentences, DIMENSIONS), np.float32)


def no_model(settings: Any, files: Any, device: str) -> Any:  # noqa: ARG001
    """Makes the executor. See `ModelCompute.make_executor`."""
    return Zeros()


def _job(model: str, file: Path, folder: str, part_rows: int) -> Job:
    ledger = Ledger(Store(f"{folder}/out"))
    compute = ModelCompute(ModelSettings.model_validate({"model": model}), DEFAULTS, make_executor=no_model)
    columns = Columns(id="id")
    return Job(find_files(str(file)), ParquetSink(ledger.store), ledger, compute, columns, part_rows)


def stages(
    model: Model,
    file: File,
    rate: Annotated[float, Option(help="Rows per second for which cores are told.")] = 44_000,
    part_rows: Annotated[int, Option(help="As of bulk.")] = 16384,
) -> dict[str, Any]:
    """Rows per second of a core, by stage."""
    rows: dict[str, float] = {}

    def timed(name: str, do: Callable[[], T]) -> T:
        best = float("inf")
        for _ in range(ROUNDS):
            start = time.process_time()
            found = do()
            best = min(best, time.process_time() - start)
        rows[name] = len(part.table) / best
        print(f"{name:<36} {rows[name]:>12,.0f} rows per core and second, {rate / rows[name]:6.2f} cores", flush=True)
        return found

    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        job = _job(model, file, folder, part_rows)
        [span, *_] = job.source.spans()
        part = next(job.read(span))
        timed("read, and look at each text", lambda: next(job.read(span)).pack())
        packed = part.pack()
        prepared = timed("tokenize", lambda: job.compute.prepare(Work.unpack(packed)[0]))
        with_ids = prepared.pack()
        worker = BatchRunner(Zeros())  # type: ignore[arg-type]

        def embed() -> Any:
            [work] = Work.unpack(with_ids)
            assert work.ids is not None
            assert work.lengths is not None
            work.vectors, work.busy = worker.compute(TokenIds(work.ids, work.lengths), 0)
            return replace(work, ids=None, space="x-float32").pack()

        timed("the GPU's process: batches, vectors", embed)
        [work] = Work.unpack(embed())
        work.vectors = np.random.default_rng(0).standard_normal((len(work.rows), DIMENSIONS), np.float32)
        done = work.pack()
        finished = timed("unit length", lambda: job.compute.finish(Work.unpack(done)[0]))
        table = output_table(finished, "float", {})
        contents = timed("Parquet", lambda: parquet_bytes(table))
        timed("write", lambda: job.ledger.store.put("part.parquet", contents))
    whole = 1 / sum(1 / one for one in rows.values())
    print(f"{'all':<36} {whole:>12,.0f} rows per core and second, {rate / whole:6.2f} cores", flush=True)
    return {"rows_per_core_second": rows, "all": whole, "rate": rate, "cores": rate / whole}


def pipeline(
    model: Model,
    file: File,
    part_rows: Annotated[int, Option(help="As of bulk.")] = 16384,
) -> dict[str, Any]:
    """Rows per CPU second of all processes of a job, without its start."""
    with tempfile.TemporaryDirectory(dir=file.parent) as folder, ray_running(None, dashboard=False):
        job = _job(model, file, folder, part_rows)
        points: list[tuple[int, float, float]] = []
        rows = 0
        with Run(job, resume=False) as run:
            for record in run.records(Workers(1)):
                rows += record.rows
                points.append((rows, time.perf_counter(), cpu_seconds()))
    (first, began, cpu), (last, ended, cpu_end) = points[len(points) // 4], points[-1]
    per_core, per_second = (last - first) / (cpu_end - cpu), (last - first) / (ended - began)
    print(f"{per_core:,.0f} rows per core and second in all processes; {per_second:,.0f} rows/s here", flush=True)
    return {"rows": last - first, "rows_per_core_second": per_core, "rows_per_second": per_second}


if __name__ == "__main__":
    run_script("bulk_stages", __doc__, stages, pipeline)
