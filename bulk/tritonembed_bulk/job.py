"""A job: spans in, records out, as a pipeline of Ray Data. Ray distributes, retries, scales and limits the work; this
file defines the steps of a part, their order, and the work that is left after a job that ended early.
"""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version as installed_version
from typing import Any, Protocol

import pyarrow as pa

from tritonembed_bulk import PART_ROWS
from tritonembed_bulk.attempts import Attempts, forget_attempts
from tritonembed_bulk.files import Source, Span
from tritonembed_bulk.lock import Lock
from tritonembed_bulk.parts import ATTEMPTS, ERRORS, RECORDS, Ledger, Part, Record, Refused
from tritonembed_bulk.rows import Columns, Work, error_table
from tritonembed_bulk.sinks import Sink, output_table, parquet_bytes

BLOCK_BYTES = 64 * 1024
"""Ray Data ends a block of rows at this many bytes, so each part gets a block of its own."""
TASK_CPUS, TOKENIZING_CPUS = 0.249, 0.999
"""CPUs of tasks that read and write, and of those that tokenize. No actor has these numbers: Ray Data fuses two stages
with the same resources into one process, and the model's process would tokenize, with its own threads."""
CALLS_PER_WORKER = 3
"""Parts that a worker holds: one is being computed, one waits, one is passed on."""


class Worker(Protocol):
    """What a Ray actor runs."""

    def embed(self, work: Work) -> Work:
        """Add the vectors to a part. From any thread."""


class Compute(Protocol):
    """How vectors are made of texts. Can be pickled."""

    @property
    def embedding_type(self) -> str:
        """The type of the output's vectors."""

    def describe(self) -> dict[str, Any]:
        """The model's name and revision."""

    def prepare(self, work: Work) -> Work:
        """The part of the work on texts that needs no worker; it runs in a task."""

    def open(self, ledger: Ledger, device: str) -> Worker:
        """The worker of an actor. device: "cpu" or "cuda". Raises Refused."""

    def finish(self, work: Work) -> Work:
        """The part of the work on vectors that needs no worker; it runs in a task."""


@dataclass(frozen=True)
class Workers:
    """The actors. most: their number, if Ray has room for them. cpus, gpus: per actor."""

    most: int = 1
    cpus: float = 1.0
    gpus: float = 0.0


@dataclass(frozen=True)
class Job:
    """The work of a job. Can be pickled. settings: JSON values that determine the output, in addition to the input."""

    source: Source
    sink: Sink
    ledger: Ledger
    compute: Compute
    columns: Columns
    part_rows: int = PART_ROWS
    settings: dict[str, Any] = field(default_factory=dict)

    def read(self, span: Span) -> Iterator[Work]:
        """The parts of a span that are not committed."""
        for part, table, errors in self.source.read(span, self.part_rows):
            if not self.is_committed(part):
                yield self.columns.work(part, table, errors)

    def is_committed(self, part: Part) -> bool:
        """Whether the part's output is there: a task that is tried again finds it."""
        record = self.ledger.find(part)
        return record is not None and (record.size, record.version) == (part.input.size, part.input.version)

    def commit(self, work: Work) -> Record:
        """Write a part's output, then its errors, then its record."""
        known = self.ledger.find(work.part)
        if known is not None:
            return known
        rows = work.table.num_rows
        work = self.compute.finish(work)
        assert work.lengths is not None
        metadata = {**self.compute.describe(), "version": installed_version("tritonembed")}
        table = output_table(work, self.compute.embedding_type, metadata)
        written = self.sink.write(work.part.name, table)
        if work.errors:
            errors = parquet_bytes(error_table(work, self.columns.id))
            self.ledger.store.put(f"{ERRORS}/{work.part.name}.parquet", errors)
        return self.ledger.commit(
            Record(
                part=work.part.name,
                input=work.part.input.name,
                size=work.part.input.size,
                version=work.part.input.version,
                span=work.part.span,
                amount=work.part.amount,
                rows=rows,
                vectors=table.num_rows,
                tokens=int(work.lengths.sum()),
                errors=len(work.errors),
                space=work.space,
                output_bytes=written.size,
                busy=work.busy,
                files=written.files,
                sink=written.sink,
            )
        )


# The stages. Their names are those that Ray's dashboard shows.


def read(batch: pa.Table, job: Job) -> Iterator[pa.Table]:
    """Spans to parts."""
    for packed in batch["span"].to_pylist():
        span = pickle.loads(packed)
        for work in job.read(span):
            yield work.pack()


def prepare(batch: pa.Table, job: Job) -> Iterator[pa.Table]:
    """Texts to token ids, if the worker wants those."""
    for work in Work.unpack(batch):
        yield job.compute.prepare(work).pack()


class Embed:
    """Parts to parts with vectors, in an actor that holds the model or the connections."""

    def __init__(self, job: Job, device: str) -> None:
        self._job = job
        self._refusal: Refused | None = None
        try:
            self._attempts = Attempts(job.ledger.store, job.compute.open(job.ledger, device).embed)
        except Refused as error:
            # If an actor fails to start, Ray keeps only the error's text, and tries again. So it is raised later.
            self._refusal = error

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        if self._refusal is not None:
            raise self._refusal
        for work in Work.unpack(batch):
            # A part comes again if Ray lost its result, and can be committed by then.
            yield (work if self._job.is_committed(work.part) else self._attempts.embed(work)).pack()


def write(batch: pa.Table, job: Job) -> Iterator[pa.Table]:
    """Parts with vectors to records."""
    for work in Work.unpack(batch):
        yield pa.table({"record": [job.commit(work).to_json()]})


class Run:
    """A job. Iterate `records()`; the output is locked while entered. Only `records` needs Ray."""

    def __init__(self, job: Job, *, resume: bool, lock: Lock | None = None) -> None:
        self.job = job
        self._resume = resume
        self._lock = lock or Lock(job.ledger.store)
        self.total = 0
        """The total amount of the source, in its unit."""
        self.before: list[Record] = []
        """Records of parts that an earlier job committed."""
        self.missing: list[Span] = []
        """Spans with parts that are not committed."""

    def __enter__(self) -> Run:
        self._lock.__enter__()
        try:
            self._start()
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        self._lock.__exit__(*error)

    def _start(self) -> None:
        job = self.job
        job.columns.check(job.source.names())
        job.ledger.check_job(job.settings, resume=self._resume)
        forget_attempts(job.ledger.store)
        self._clean()
        spans = job.source.spans()
        self.total = sum(span.amount for span in spans)
        self.before = job.ledger.current({span.input.name: span.input for span in spans}.values())
        done: Counter[tuple[str, int]] = Counter()
        for record in self.before:
            done[record.input, record.span] += record.amount
        # The spans that are read again leave out their committed parts.
        self.missing = [span for span in spans if not span.is_exact or done[span.input.name, span.start] < span.amount]

    @property
    def is_complete(self) -> bool:
        """Whether nothing is missing, as far as that is known without reading the input."""
        return not self.missing

    def records(self, workers: Workers) -> Iterator[Record]:
        """Compute the missing parts, and give their records as they are committed. Raises Refused."""
        dataset = self._dataset(workers)
        try:
            for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                yield from map(Record.from_json, batch.column("record").to_pylist())
                if self._lock.lost:
                    raise Refused("another job has taken this output over: this job was silent for too long")
        except Exception as error:
            raise _reason(error) from None

    def finish(self) -> None:
        """Do what is left for the sink when all parts are committed."""
        self.job.sink.finish(self.job.ledger.records())
        forget_attempts(self.job.ledger.store)
        self._clean()

    def _clean(self) -> None:
        """Remove what killed processes left half-written."""
        self.job.ledger.store.remove_temporary(("", RECORDS, ERRORS, ATTEMPTS))

    def _dataset(self, workers: Workers) -> Any:
        import ray.data

        given = {"fn_kwargs": {"job": self.job}, "batch_size": 1, "batch_format": "pyarrow"}
        pool = ray.data.ActorPoolStrategy(
            min_size=1,
            max_size=workers.most,
            max_concurrent_calls_per_actor=CALLS_PER_WORKER,
        )
        packed = [{"span": pickle.dumps(span)} for span in self.missing]
        return (
            ray.data.from_items(packed, override_num_blocks=len(packed))
            .map_batches(read, num_cpus=TASK_CPUS, **given)
            .map_batches(prepare, num_cpus=TOKENIZING_CPUS, **given)
            .map_batches(
                Embed,
                fn_constructor_args=(self.job, "cuda" if workers.gpus else "cpu"),
                batch_size=1,
                batch_format="pyarrow",
                compute=pool,
                num_cpus=workers.cpus,
                num_gpus=workers.gpus,
            )
            .map_batches(write, num_cpus=TASK_CPUS, **given)
        )


def _reason(error: BaseException) -> Refused:
    """What ended the pipeline, in one line: the first error that a stage raised itself."""
    found = error
    # Ray's errors hold the stage's own as `cause`; some are of its class, too, with a traceback as their text.
    while isinstance(inner := getattr(found, "cause", None) or found.__cause__, BaseException):
        found = inner
    # Ray appends advice to the message.
    line = str(found).strip().partition("\n")[0]
    return Refused(line if isinstance(found, Refused) else f"{type(found).__name__}: {line}"[:400])
