"""Both ways to compute, without Ray, on the real things: a server, and the engine's executor in this process."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.integration.reference import cosines, reference_vectors
from tests.unit.bulk.conftest import make_job
from tests.unit.bulk.here import read_output, run_here

from tritonembed.cli.options import Connection
from tritonembed_bulk.parts import Refused
from tritonembed_bulk.starting import Fleet, Model, request_of
from tritonembed_perf.server import RunningServer

LONGEST = 64
TEXTS = [f"the quick brown fox jumps over {'a lazy dog ' * n}" for n in range(1, 40)]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker sets variables for the model's libraries, in a process of its own: other tests must not get them."""
    monkeypatch.setattr(os, "environ", os.environ.copy())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """39 texts, of which some are too long for the model, and one row without a text."""
    file = tmp_path_factory.mktemp("bulk") / "texts.parquet"
    pq.write_table(pa.table({"id": range(len(TEXTS) + 1), "text": [*TEXTS, None]}), file)
    return file


def vectors_of(table: pa.Table) -> npt.NDArray[Any]:
    """The column of vectors."""
    return np.array(table["embedding"].to_pylist())


def by_fleet(server: RunningServer, source: Path, output: Path, *chunking: Any, **options: Any) -> pa.Table:
    """The output of a job that the session's server computes. chunking: --chunk and --pool."""
    request = request_of(*(chunking or (None, None)), options.pop("truncate", None), **options)
    fleet = Fleet(Connection({}, None), [server.target], "least_loaded", 8, 2)
    chunks = bool(chunking) and chunking[1] is None
    job = make_job(source, output, part_rows=16)
    run_here(make_job(source, output, fleet.compute(request, chunks, job.ledger), part_rows=16))
    return read_output(output)


def test_a_fleet_gives_the_vectors_of_transformers(
    server: RunningServer, model: Path, source: Path, tmp_path: Path
) -> None:
    table = by_fleet(server, source, tmp_path / "out")
    expected = reference_vectors(model, TEXTS, "mean", True, LONGEST)
    assert table["id"].to_pylist() == list(range(len(TEXTS)))
    assert cosines(vectors_of(table), expected).min() > 0.99999
    # The same job with the executor here, at another batch size.
    compute = Model(str(model), None, None, "transformers", reference=False)
    job = make_job(source, tmp_path / "here", part_rows=16)
    computed = compute.compute({}, False, job.ledger)
    for output in ("here", "again"):
        run_here(make_job(source, tmp_path / output, computed, part_rows=16))
    here, again = read_output(tmp_path / "here"), read_output(tmp_path / "again")
    assert cosines(vectors_of(here), expected).min() > 0.99999
    assert here.equals(again)
    # Vectors of one space can be mixed: the fleet may go on with what the engine began.
    parts = list((tmp_path / "here" / "_tritonembed" / "parts").glob("*.json"))
    parts[0].unlink()
    assert cosines(vectors_of(by_fleet(server, source, tmp_path / "here")), expected).min() > 0.99999


def test_texts_that_a_fleet_refuses_are_errors_and_the_others_have_vectors(
    server: RunningServer, source: Path, tmp_path: Path
) -> None:
    table = by_fleet(server, source, tmp_path / "out", truncate="NONE", embedding_type="ubinary")
    errors = pq.read_table(tmp_path / "out" / "_tritonembed" / "errors").to_pylist()
    assert errors
    assert {row["reason"].partition(" tokens")[0] for row in errors} == {"the text has more", "no text"}
    assert sorted([*table["id"].to_pylist(), *(int(row["id"]) for row in errors)]) == list(range(len(TEXTS) + 1))
    assert table.schema.field("embedding").type == pa.list_(pa.uint8(), 8)


def test_chunks_have_places_and_their_mean_is_the_texts_vector(
    server: RunningServer, model: Path, source: Path, tmp_path: Path
) -> None:
    chunk = "tokens=32,overlap=4"
    rows = by_fleet(server, source, tmp_path / "rows", chunk, None, truncate=None)
    assert rows["chunk"].to_pylist().count(0) == len(TEXTS)
    longest = [row for row in rows.to_pylist() if row["id"] == len(TEXTS) - 1]
    assert [row["chunk"] for row in longest] == list(range(len(longest)))
    text = TEXTS[-1]
    pieces = [text[row["chunk_start"] : row["chunk_end"]] for row in longest]
    expected = reference_vectors(model, pieces, "mean", True, LONGEST)
    assert cosines(np.array([row["embedding"] for row in longest]), expected).min() > 0.99999
    means = by_fleet(server, source, tmp_path / "means", chunk, "mean", truncate=None)
    compute = Model(str(model), None, None, "transformers", reference=False)
    request = request_of(chunk, "mean", None)
    job = make_job(source, tmp_path / "here", part_rows=16)
    run_here(make_job(source, tmp_path / "here", compute.compute(request, False, job.ledger), part_rows=16))
    assert cosines(vectors_of(read_output(tmp_path / "here")), vectors_of(means)).min() > 0.99999
    own = make_job(source, tmp_path / "own", part_rows=16)
    run_here(make_job(source, tmp_path / "own", compute.compute(request_of(chunk, None, None), True, own.ledger)))
    assert read_output(tmp_path / "own").drop_columns(["embedding"]).equals(rows.drop_columns(["embedding"]))


def test_a_parameter_that_the_fleet_refuses_ends_the_job(server: RunningServer, source: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="dimensions: 65 is over the model's 64"):
        by_fleet(server, source, tmp_path / "out", dimensions=65)


def test_a_fleet_of_another_space_is_refused(server: RunningServer, source: Path, tmp_path: Path) -> None:
    job = make_job(source, tmp_path / "out")
    job.ledger.claim_space("111111111111-float32")
    with pytest.raises(Refused, match="the output has vectors of the space 111111111111-float32"):
        by_fleet(server, source, tmp_path / "out")
