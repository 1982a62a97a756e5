"""Lance tables as source and sink, read back by LanceDB; and a job on them that is killed."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import lance
import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.unit.bulk.conftest import make_job
from tests.unit.bulk.here import run_here

from tritonembed_bulk.cluster import ray_running
from tritonembed_bulk.job import Job, Run, Workers
from tritonembed_bulk.lance_tables import LanceSink, find_table
from tritonembed_bulk.parts import Refused
from tritonembed_bulk.starting import Output, source_of
from tritonembed_perf.sleeping import SleepingCompute, digests

TEXTS = [f"text {row}" for row in range(25)]
VECTORS = digests([text.encode() for text in TEXTS], 16)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """25 rows, in row groups of ten."""
    file = tmp_path / "source.parquet"
    pq.write_table(pa.table({"id": range(25), "text": TEXTS, "lang": ["en"] * 25}), file, row_group_size=10)
    return file


def to_table(source: Path, place: Path, compute: SleepingCompute | None = None) -> Job:
    """A job of parts of four rows to a Lance table."""
    output = Output(str(place), "parquet", None, "id")
    assert output.kind == "lance"
    return replace(make_job(source, place, compute, part_rows=4), sink=output.sink)


def from_table(place: Path, output: Path) -> Job:
    """A job that reads a Lance table."""
    source = source_of(str(place), None, "id", 4)
    return replace(make_job(place.parent / "source.parquet", output, part_rows=4), source=source)


def opened(place: Path) -> Any:
    """The table, by LanceDB."""
    return lancedb.connect(str(place.parent)).open_table(place.stem)


def rows_of(place: Path) -> pa.Table:
    """All rows, by id."""
    return opened(place).to_arrow().sort_by("id")


def data_files(place: Path) -> int:
    """The number of a table's files."""
    return len(list((place / "data").iterdir()))


def test_lancedb_finds_each_row_once_by_its_vector(source: Path, tmp_path: Path) -> None:
    place = tmp_path / "db" / "texts.lance"
    assert len(run_here(to_table(source, place))) == 8
    table = rows_of(place)
    assert table.column_names == ["id", "lang", "embedding"]
    assert table["id"].to_pylist() == list(range(25))
    assert np.array_equal(np.array(table["embedding"].to_pylist(), np.float32), VECTORS)
    assert table.schema.metadata[b"tritonembed.embedding_space"] == b"000000000000-float32"
    assert b"tritonembed.part" not in table.schema.metadata
    [best] = opened(place).search(VECTORS[7]).limit(1).to_list()
    assert best["id"] == 7


def test_no_part_is_seen_before_all_are_there_and_what_a_killed_task_wrote_never(source: Path, tmp_path: Path) -> None:
    place = tmp_path / "texts.lance"
    job = to_table(source, place)
    with Run(job, resume=False) as run:
        worker = job.compute.open(job.ledger, "cpu")
        parts = [work for span in run.missing for work in job.read(span)]
        for work in parts[:3]:
            job.commit(worker.embed(work))
        # A task that was killed after its file was there, before its record was.
        lost = worker.embed(parts[3])
        lost.table = lost.table.set_column(1, "lang", pa.array(["de"] * len(lost.table)))
        job.ledger.commit = lambda record: record  # type: ignore[method-assign]
        job.commit(lost)
    assert data_files(place) == 4
    with pytest.raises(ValueError, match="not found"):
        lance.dataset(place)
    # The sink of a job that goes on takes the folder for its own.
    assert len(run_here(to_table(source, place))) == 5
    assert rows_of(place)["id"].to_pylist() == list(range(25))
    assert set(rows_of(place)["lang"].to_pylist()) == {"en"}
    assert data_files(place) == 8


def test_a_changed_input_replaces_its_rows_and_a_finished_table_stays_as_it_is(source: Path, tmp_path: Path) -> None:
    place = tmp_path / "texts.lance"
    run_here(to_table(source, place))
    opened(place).delete("id = 3")
    assert run_here(to_table(source, place)) == []
    assert opened(place).count_rows() == 24
    pq.write_table(pa.table({"id": [99], "text": ["new"], "lang": ["de"]}), source)
    assert [record.rows for record in run_here(to_table(source, place))] == [1]
    assert rows_of(place)["id"].to_pylist() == [99]


def test_parts_of_other_columns_and_a_strangers_table_are_refused(source: Path, tmp_path: Path) -> None:
    place = tmp_path / "texts.lance"
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, extra in (("a", 1), ("b", "one")):
        pq.write_table(pa.table({"id": [1], "text": ["x"], "n": [extra]}), folder / f"{name}.parquet")
    with pytest.raises(Refused, match=r"one type per column, and parts of the input differ in n$"):
        run_here(to_table(folder, place))
    lancedb.connect(str(tmp_path)).create_table("mine", [{"id": 1}])
    with pytest.raises(Refused, match=r"the table exists already, and no job has made it"):
        to_table(source, tmp_path / "mine.lance")


def test_a_table_is_read_by_its_fragments_and_only_those_that_changed_again(source: Path, tmp_path: Path) -> None:
    place = tmp_path / "in.lance"
    lance.write_dataset(pq.read_table(source), place, max_rows_per_file=10)
    out = tmp_path / "out"
    first = run_here(from_table(place, out))
    assert [record.rows for record in first] == [4, 4, 2, 4, 4, 2, 4, 1]
    table = pq.read_table(out).sort_by("id")
    assert np.array_equal(np.array(table["embedding"].to_pylist(), np.float32), VECTORS)
    assert run_here(from_table(place, out)) == []
    # Rows that go change their fragment, rows that come are another one.
    lance.dataset(place).delete("id = 12")
    lance.write_dataset(pa.table({"id": [99], "text": ["new"], "lang": ["de"]}), place, mode="append")
    again = run_here(from_table(place, out))
    assert {record.input for record in again} == {"fragment-1", "fragment-3"}
    assert pq.read_table(out).sort_by("id")["id"].to_pylist() == [row for row in range(25) if row != 12] + [99]


def test_what_is_written_to_a_table_during_the_job_is_not_read(source: Path, tmp_path: Path) -> None:
    place = tmp_path / "in.lance"
    lance.write_dataset(pq.read_table(source), place, max_rows_per_file=10)
    job = from_table(place, tmp_path / "out")
    with Run(job, resume=False) as run:
        lance.dataset(place).delete("id < 10")
        rows = [row for span in run.missing for work in job.read(span) for row in work.table["id"].to_pylist()]
        assert rows == list(range(25))
        shutil.rmtree(place)
        with pytest.raises(Refused, match=r"^Lance: there is no such table, or its version is gone$"):
            list(job.read(run.missing[0]))
    with pytest.raises(Refused, match=r"^Lance: there is no such table"):
        find_table(str(place))


@pytest.mark.timeout(300)
def test_two_tables_through_ray(source: Path, tmp_path: Path) -> None:
    """Ray's processes read fragments, and describe those that they wrote to the driver."""
    begin, place = tmp_path / "in.lance", tmp_path / "out.lance"
    lance.write_dataset(pq.read_table(source), begin, max_rows_per_file=10)
    job = replace(to_table(source, place), source=find_table(str(begin)))
    with Run(job, resume=False) as run, ray_running(None, dashboard=False):
        with pytest.raises(Refused, match="another job writes this output"), Run(job, resume=True):
            pass
        assert len(list(run.records(Workers(1, 0.5)))) == 8
        run.finish()
    assert isinstance(job.sink, LanceSink)
    assert np.array_equal(np.array(rows_of(place)["embedding"].to_pylist(), np.float32), VECTORS)
