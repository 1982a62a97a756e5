"""From the command's options to a job, and the job's run."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import typer

from tritonembed.cli.failures import CommandError, UsageError, failures
from tritonembed.cli.options import Connection
from tritonembed_bulk import Device, Format, LogFormat
from tritonembed_bulk.cluster import cpu_workers, device_of, gpu_workers, machines, ray_running
from tritonembed_bulk.databases import database_sink
from tritonembed_bulk.files import Source, find_files
from tritonembed_bulk.fleet_workers import FleetCompute
from tritonembed_bulk.job import Job, Run, Workers
from tritonembed_bulk.lance_tables import LanceSink, find_table, is_lance
from tritonembed_bulk.model_workers import ModelCompute
from tritonembed_bulk.parts import Ledger, Refused
from tritonembed_bulk.postgres_source import is_postgres, postgres_source
from tritonembed_bulk.report import Counts, Display, Progress, shown, write_report
from tritonembed_bulk.rows import Columns
from tritonembed_bulk.sinks import NumpySink, ParquetSink, Sink
from tritonembed_bulk.store import BadLocation, Store
from tritonembed_protocol.policies import PolicyName
from tritonembed_protocol.served import FIRST

if TYPE_CHECKING:
    from tritonembed_engine.parameters import EmbedParameters
    from tritonembed_engine.settings import ModelSettings

Compute = FleetCompute | ModelCompute


class Output:
    """The sink and the records. state: the records' folder if the sink is a database. Raises BadLocation, Refused."""

    def __init__(self, location: str, kind: Format, state: str | None, id_column: str | None) -> None:
        self._database = database_sink(location, id_column)
        if (self._database is None) != (state is None):
            raise Refused("--state FOLDER is for the records of a database, which needs it")
        self.ledger = Ledger(Store(state or location))
        self.kind = "lance" if is_lance(location) else kind
        self._location = location

    @property
    def sink(self) -> Sink:
        """What writes parts. Raises Refused."""
        if self._database is not None:
            return self._database
        if self.kind == "lance":
            table = LanceSink(self._location, self.ledger.store)
            table.check()
            return table
        return ParquetSink(self.ledger.store) if self.kind == "parquet" else NumpySink(self.ledger.store)


@dataclass(frozen=True)
class Fleet:
    """The options of --server."""

    connection: Connection
    servers: list[str]
    policy: PolicyName
    batch_size: int
    max_in_flight: int

    def compute(self, request: dict[str, Any], chunks: bool, ledger: Ledger) -> FleetCompute:
        """Ask the fleet for its embedding space. Raises Refused if the output has vectors of another one."""
        connect = partial(self.connection.open, self.servers, policy=self.policy, max_in_flight=self.max_in_flight)
        with connect() as client:
            space = client.info().embedding_space
        if space is not None:
            ledger.check_space(space)
        options = {**request, "priority": "bulk", "embedding_space": space}
        if chunks:
            del options["truncate"]
        given = {name: value for name, value in options.items() if value is not None}
        in_flight = self.max_in_flight * len(self.servers)
        model = self.connection.model or FIRST
        return FleetCompute(connect, given, self.batch_size, in_flight, space, model, chunks)


@dataclass(frozen=True)
class Model:
    """The options of --model without --server."""

    name: str | None
    revision: str | None
    dtype: str | None
    executor: str
    reference: bool

    def compute(self, request: dict[str, Any], chunks: bool, ledger: Ledger) -> ModelCompute:
        """Read the model's files. Raises Refused if the output has vectors of another model, and UsageError."""
        compute = ModelCompute(self._settings(), _parameters(request), chunks)
        ledger.check_model(compute.digest())
        return compute

    def _settings(self) -> ModelSettings:
        if self.name is None:
            raise UsageError("give --server HOST:PORT for a fleet, or --model for a model to load")
        try:
            from pydantic import ValidationError

            from tritonembed_engine.settings import ModelSettings
        except ImportError as error:
            raise UsageError(f"--model needs the engine ({error.name}): pip install 'tritonembed[engine]'") from None
        vllm = {
            name: value for name, value in (("revision", self.revision), ("dtype", self.dtype)) if value is not None
        }
        engine = {"executor": self.executor, "reference": "auto" if self.reference else "off"}
        try:
            return ModelSettings.model_validate({"model": self.name, "vllm": vllm, "engine": engine})
        except ValidationError as error:
            first = error.errors()[0]
            raise UsageError(f"--{first['loc'][-1]}: {first['msg']}") from None


def _parameters(request: dict[str, Any]) -> EmbedParameters:
    """The engine's parameters. Raises UsageError."""
    from tritonembed_engine.errors import InvalidArgument
    from tritonembed_engine.parameters import parse_parameters

    try:
        return parse_parameters(json.dumps(request))
    except InvalidArgument as error:
        raise UsageError(str(error)) from None


def request_of(chunk: str | None, pool: str | None, truncate: str | None, **others: Any) -> dict[str, Any]:
    """The request parameters that were given. Raises UsageError."""
    given = {"truncate": truncate, **others, **_chunking(chunk, pool, truncate)}
    return {name: value for name, value in given.items() if value is not None}


def _chunking(chunk: str | None, pool: str | None, truncate: str | None) -> dict[str, Any]:
    """The request parameters of --chunk. Raises UsageError."""
    if chunk is None:
        if pool is not None:
            raise UsageError("--pool is for chunks: give --chunk, too")
        return {}
    if truncate not in (None, "CHUNK"):
        raise UsageError("--chunk: texts are not cut off, so --truncate can't be given")
    found = re.fullmatch(r"tokens=([1-9]\d{0,6})(?:,overlap=(\d{1,6}))?", chunk)
    if found is None:
        raise UsageError("--chunk must be tokens=N or tokens=N,overlap=M")
    return {"truncate": "CHUNK", "chunk_tokens": int(found[1]), "chunk_overlap": int(found[2] or 0)}


def columns_of(text: str, template: str | None, id_column: str | None, *, keep_text: bool) -> Columns:
    """The columns to read. A shell passes \\n as two characters."""
    return Columns(text, None if template is None else template.replace(r"\n", "\n"), id_column, keep_text)


def source_of(location: str, query: str | None, id_column: str | None, part_rows: int) -> Source:
    """The source of the rows. query: for PostgreSQL. Raises Refused."""
    if is_postgres(location):
        return postgres_source(location, query, id_column, part_rows)
    if query is not None:
        raise Refused("--query is for PostgreSQL as the source")
    return find_table(location) if is_lance(location) else find_files(location)


def job_of(
    source: Source, output: Output, compute: Compute, columns: Columns, part_rows: int, request: dict[str, Any]
) -> Job:
    """The job. request: settings that determine the vectors, in addition to the model. Raises Refused."""
    settings = {
        "format": output.kind,
        "text": columns.template or columns.text,
        "id": columns.id,
        "keep_text": columns.keep_text,
        "part_rows": part_rows,
        **request,
    }
    return Job(source, output.sink, output.ledger, compute, columns, part_rows, settings)


@dataclass(frozen=True)
class Cluster:
    """The options of Ray. address: None: Ray starts here. workers, cpus: None: from Ray's resources."""

    address: str | None = None
    workers: int | None = None
    cpus: float | None = None
    device: Device = "auto"
    dashboard: bool = False

    def workers_for(self, compute: Any) -> Workers:
        """The actors and their resources. Raises Refused."""
        if isinstance(compute, FleetCompute):
            return Workers(self.workers or 1, self.cpus or 0.5)
        if device_of(self.device) == "cuda":
            return gpu_workers(self.workers, self.cpus)
        return cpu_workers(self.workers, self.cpus, started_here=self.address is None)


@dataclass(frozen=True)
class Limits:
    """Other options of a run. price: per hour, of all machines."""

    max_errors: int | None = None
    price: float | None = None
    log_format: LogFormat = "text"


def run_job(job: Job, cluster: Cluster, limits: Limits, *, resume: bool) -> Progress:
    """Run a job, show it, and write its report. Raises Refused."""
    with Run(job, resume=resume) as run:
        before = Counts()
        for record in run.before:
            before.add(record)
        progress = Progress(run.total, before, price=limits.price)
        ended, used = "interrupted", []
        try:
            if not run.is_complete:
                with ray_running(cluster.address, dashboard=cluster.dashboard):
                    used = machines()
                    workers = cluster.workers_for(job.compute)
                    progress.workers = 0 if isinstance(job.compute, FleetCompute) else workers.most
                    _follow(run, workers, progress, limits)
            run.finish()
            ended = "complete"
        except Refused as error:
            ended = str(error)
            raise
        finally:
            name = write_report(job.ledger.store, progress, ended, job.ledger.space, used)
    if limits.log_format == "text":
        figures = ", ".join(f"{what} {value}" for what, value in shown(progress.figures(whole=True)))
        typer.echo(f"tritonembed: {figures}; embedding space {job.ledger.space}; report {name}", err=True)
    return progress


def _follow(run: Run, workers: Workers, progress: Progress, limits: Limits) -> None:
    with Display(progress, limits.log_format, live=sys.stderr.isatty()):
        for record in run.records(workers):
            progress.add(record)
            errors = progress.before.errors + progress.now.errors
            if limits.max_errors is not None and errors > limits.max_errors:
                raise Refused(f"rows that can't be embedded: {errors}, more than --max-errors {limits.max_errors}")


@contextmanager
def refusals() -> Iterator[None]:
    """Turn what the job's parts raise into a CommandError."""
    try:
        with failures():
            yield
    except Refused as error:
        raise CommandError(str(error)) from error
    except BadLocation as error:
        raise UsageError(str(error)) from error
    except pa.ArrowException as error:
        # Arrow's messages can hold paths and have many lines.
        line = str(error).strip().partition("\n")[0]
        raise CommandError(f"{type(error).__name__}: {line[:300]}") from error
