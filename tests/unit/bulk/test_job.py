"""What a job writes, and what it computes again: nothing that is committed, unless its input changed."""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.unit.bulk.here import read_output, run_here

from tritonembed_bulk.job import Run
from tritonembed_bulk.parts import Refused
from tritonembed_bulk.rows import Columns, Work
from tritonembed_bulk.sinks import NumpySink
from tritonembed_perf.sleeping import SPACE, SleepingCompute, digests


def names(records):
    return [record.part for record in records]


def computed(log):
    return sorted(name.split()[0] for name in os.listdir(log))


def test_each_row_with_a_text_gets_its_vector_beside_its_columns(job_of, tmp_path):
    records = run_here(job_of())
    table = read_output(tmp_path / "out")
    assert table.column_names == ["id", "lang", "embedding"]
    ids = [number for number in range(20) if number != 13]
    assert table["id"].to_pylist() == ids
    expected = digests([f"text {i // 10} {i % 10}".encode() for i in ids], 16)
    assert np.array_equal(np.array(table["embedding"].to_pylist(), np.float32), expected)
    assert sum(record.tokens for record in records) == 68 * len(ids)


def test_a_part_is_named_by_its_input_and_says_what_made_it(job_of, tmp_path):
    records = run_here(job_of())
    assert [name.rpartition("-")[2] for name in names(records)[:4]] == [f"r{row:012d}" for row in (0, 3, 4, 7)]
    metadata = pq.read_schema(tmp_path / "out" / f"{records[0].part}.parquet").metadata
    assert metadata[b"tritonembed.embedding_space"] == SPACE.encode()
    assert metadata[b"tritonembed.model"] == b"sleeping"
    assert metadata[b"tritonembed.input"] == b"0.parquet"
    assert pq.read_schema(tmp_path / "out" / f"{records[0].part}.parquet").field("embedding").type == pa.list_(
        pa.float32(), 16
    )


def test_a_row_that_cant_be_embedded_is_in_the_error_table(job_of, tmp_path):
    records = run_here(job_of())
    assert sum(record.errors for record in records) == 1
    [row] = pq.read_table(tmp_path / "out" / "_tritonembed" / "errors").to_pylist()
    assert row == {"id": "13", "part": row["part"], "row": 0, "reason": "no text"}
    assert row["part"].endswith("r000000000003")


def test_a_finished_job_computes_nothing_again(job_of, tmp_path):
    log = tmp_path / "log"
    log.mkdir()
    compute = SleepingCompute(log=str(log))
    first = run_here(job_of(compute))
    assert computed(log) == sorted(names(first))
    assert run_here(job_of(compute)) == []
    assert computed(log) == sorted(names(first))


def test_only_parts_without_a_record_are_computed(job_of, tmp_path):
    first = run_here(job_of())
    before = read_output(tmp_path / "out")
    lost = first[2].part
    (tmp_path / "out" / "_tritonembed" / "parts" / f"{lost}.json").unlink()
    assert names(run_here(job_of())) == [lost]
    assert read_output(tmp_path / "out").equals(before)


def test_a_changed_file_is_computed_again_and_its_old_parts_are_gone(job_of, source, tmp_path):
    first = run_here(job_of())
    pq.write_table(pa.table({"id": [0], "text": ["new"], "lang": ["de"]}), source / "0.parquet")
    assert [record.input for record in run_here(job_of())] == ["0.parquet"]
    table = read_output(tmp_path / "out")
    assert table["id"].to_pylist() == [0, *(i for i in range(10, 20) if i != 13)]
    assert table["lang"][0].as_py() == "de"
    assert len(first) > len(list((tmp_path / "out").glob("*.parquet")))


def test_a_removed_files_parts_go(job_of, source, tmp_path):
    run_here(job_of())
    (source / "0.parquet").unlink()
    run_here(job_of())
    assert min(read_output(tmp_path / "out")["id"].to_pylist()) == 10


def test_a_file_that_changes_during_the_job_ends_it(job_of, source):
    job = job_of()
    with Run(job, resume=False) as run:
        pq.write_table(pa.table({"id": [0], "text": ["new"], "lang": ["de"]}), source / "0.parquet")
        with pytest.raises(Refused, match=r"0\.parquet: the file changed while the job ran"):
            list(job.read(run.missing[0]))


def test_an_output_with_parts_needs_resume(job_of):
    run_here(job_of(), resume=False)
    with pytest.raises(Refused, match="--resume"):
        run_here(job_of(), resume=False)


def test_other_settings_are_refused_by_name(job_of):
    run_here(job_of(dimensions=8))
    with pytest.raises(Refused, match=r"dimensions was 8, is 4"):
        run_here(job_of(dimensions=4))


def test_another_model_is_refused(job_of, tmp_path):
    run_here(job_of())
    (tmp_path / "out" / "_tritonembed" / "parts").rename(tmp_path / "gone")
    with pytest.raises(Refused, match=r"of the space 000000000000-float32, and these are of 111111111111-float32"):
        run_here(job_of(SleepingCompute(space="111111111111-float32")))


def test_a_model_is_told_from_another_before_it_is_loaded(job_of):
    job = job_of()
    run_here(job)
    job.ledger.check_model("000000000000")
    with pytest.raises(Refused):
        job.ledger.check_model("111111111111")


def test_a_damaged_record_is_refused(job_of, tmp_path):
    first = run_here(job_of())
    (tmp_path / "out" / "_tritonembed" / "parts" / f"{first[0].part}.json").write_text("{")
    with pytest.raises(Refused, match="damaged"):
        run_here(job_of())


def test_two_attempts_at_a_part_commit_it_once(job_of):
    job = job_of()
    with Run(job, resume=False) as run:
        worker = job.compute.open(job.ledger, "cpu")
        work, again = next(job.read(run.missing[0])), next(job.read(run.missing[0]))
        worker.embed(work)
        worker.embed(again)
        again.busy = 5.0
        first = job.commit(work)
        assert job.commit(again) == first
        assert job.ledger.commit(first) == first


def test_numpy_shards_have_vectors_and_rows_in_one_order(job_of, tmp_path):
    records = run_here(job_of(sink=NumpySink))
    for record in records:
        vectors = np.load(tmp_path / "out" / f"{record.part}.npy")
        rows = pq.read_table(tmp_path / "out" / f"{record.part}.ids.parquet")
        assert rows.column_names == ["id", "lang"]
        expected = digests([f"text {i // 10} {i % 10}".encode() for i in rows["id"].to_pylist()], 16)
        assert np.array_equal(vectors, expected.reshape(-1, 16))


def test_the_text_is_kept_if_that_is_asked_for(job_of, tmp_path):
    run_here(job_of(columns=Columns(id="id", keep_text=True)))
    assert read_output(tmp_path / "out").column_names == ["id", "text", "lang", "embedding"]


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        (Columns(text="body"), "no column 'body'; it has id, text, lang"),
        (Columns(id="key"), "no column 'key'"),
        (Columns(template="{title} {text}"), "no column 'title'"),
        (Columns(template="nothing"), "--template must name columns"),
        (Columns(template="{text!r}"), "--template must name columns"),
        (Columns(template="{text"), "--template: "),
    ],
)
def test_wrong_columns_are_refused(job_of, columns, reason):
    with pytest.raises(Refused, match=reason.replace("{", r"\{")):
        run_here(job_of(columns=columns))


def test_a_part_whose_texts_are_all_wrong_is_committed_without_rows(job_of, source, tmp_path):
    pq.write_table(pa.table({"id": [1], "text": pa.nulls(1, pa.string()), "lang": ["en"]}), source / "0.parquet")
    records = run_here(job_of())
    assert [(record.vectors, record.errors) for record in records if record.input == "0.parquet"] == [(0, 1)]
    assert len(read_output(tmp_path / "out")) == 9


def test_nothing_half_written_stays(job_of, tmp_path):
    out = tmp_path / "out"
    for folder in (out, *(out / "_tritonembed" / name for name in ("parts", "errors", "attempts"))):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".part.abcd.tmp").write_text("half")
    run_here(job_of())
    assert not list(out.rglob(".*.tmp"))
    assert json.loads((out / "_tritonembed" / "space.json").read_text()) == {"embedding_space": SPACE}


@pytest.mark.parametrize("kind", ["<f4", "int8"])
def test_a_part_is_the_same_after_it_was_packed(job_of, kind):
    job = job_of()
    with Run(job, resume=False) as run:
        work = next(job.read(run.missing[0]))
    [before] = Work.unpack(work.pack())
    assert before.vectors is None
    assert before.texts == work.texts
    work.vectors = np.arange(6).reshape(3, 2).astype(kind)
    rows = pa.concat_tables([work.pack(), work.pack()])
    for after in Work.unpack(rows):
        assert np.array_equal(after.vectors, work.vectors)
        assert after.vectors.dtype == work.vectors.dtype
        assert after.table.equals(work.table)
    assert work.vectors.shape == (3, 2)
