"""A data set, jobs over it, and the session's Ray, whose start takes seconds of a core."""

import signal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tritonembed_bulk.cluster import ray_running
from tritonembed_bulk.files import find_files
from tritonembed_bulk.job import Job
from tritonembed_bulk.parts import Ledger
from tritonembed_bulk.rows import Columns
from tritonembed_bulk.sinks import ParquetSink
from tritonembed_bulk.store import Store
from tritonembed_perf.sleeping import SleepingCompute


@pytest.fixture(scope="session")
def ray_of_session():
    """The address of the session's Ray."""
    import ray

    handler = signal.getsignal(signal.SIGTERM)
    with ray_running(None, dashboard=False):
        # Ray sets one of its own, which other tests would have then.
        signal.signal(signal.SIGTERM, handler)
        yield ray.get_runtime_context().gcs_address


@pytest.fixture
def source(tmp_path):
    """Two files with ten rows in row groups of four; one row has no text."""
    folder = tmp_path / "source"
    folder.mkdir()
    for number in range(2):
        texts = [f"text {number} {row}" for row in range(10)]
        if number == 1:
            texts[3] = None
        table = pa.table({"id": [10 * number + row for row in range(10)], "text": texts, "lang": ["en"] * 10})
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=4)
    return folder


def make_job(source, output, compute=None, sink=ParquetSink, columns=None, part_rows=3, **settings):
    """A job over files."""
    ledger = Ledger(Store(str(output)))
    columns = columns or Columns(id="id")
    files = find_files(str(source))
    return Job(files, sink(ledger.store), ledger, compute or SleepingCompute(), columns, part_rows, settings)


@pytest.fixture
def job_of(source, tmp_path):
    """Makes jobs from the source to an output."""

    def make(compute=None, output="out", **more):
        return make_job(source, tmp_path / output, compute, **more)

    return make
