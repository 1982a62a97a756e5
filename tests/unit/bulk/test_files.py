"""Sources: every row is read once, whatever the spans, and what can't be read gets a reason."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tritonembed_bulk import files
from tritonembed_bulk.files import find_files
from tritonembed_bulk.parts import Refused
from tritonembed_bulk.rows import Columns


def read_all(location, part_rows=1000):
    source = find_files(str(location))
    return [read for span in source.spans() for read in source.read(span, part_rows)]


def rows_of(reads):
    return [row for _, table, _ in reads for row in table.to_pylist()]


@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=30),
    span=st.integers(1, 200),
    part_rows=st.integers(1, 7),
    ends=st.booleans(),
)
def test_each_line_is_in_one_part_of_one_span(tmp_path_factory, lengths, span, part_rows, ends):
    file = tmp_path_factory.mktemp("lines") / "a.jsonl"
    lines = [json.dumps({"id": number, "text": "x" * length}) for number, length in enumerate(lengths)]
    file.write_text("\n".join(lines) + "\n" * ends)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "LINES_SPAN", span)
        patch.setattr(files, "BLOCK", 16)
        source = find_files(str(file))
        assert source.spans()[-1].stop == file.stat().st_size
        reads = [read for one in source.spans() for read in source.read(one, part_rows)]
    assert sorted(row["id"] for row in rows_of(reads)) == list(range(len(lengths)))
    assert sum(part.amount for part, _, _ in reads) == file.stat().st_size
    assert len({part.name for part, _, _ in reads}) == len(reads)
    assert max(table.num_rows for _, table, _ in reads) <= part_rows


def test_wrong_lines_have_a_reason_and_blank_ones_do_not_count(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"text": "a"}\n\n{"text": \n[1]\n{"text": "\xff"}\n{"text": "b", "more": 1}\n')
    [(part, table, errors)] = read_all(file)
    assert errors == [(1, "the line is not JSON"), (2, "the line is not a JSON object"), (3, "the line is not UTF-8")]
    assert table["text"].to_pylist() == ["a", None, None, None, "b"]
    work = Columns().work(part, table, errors)
    assert work.texts == [b"a", b"b"]
    assert work.rows.tolist() == [0, 4]
    assert work.errors == errors


def test_all_parts_of_json_lines_have_the_same_columns(tmp_path):
    file = tmp_path / "a.jsonl"
    rows = [{"text": "a", "n": 1}, {"text": "b", "n": None}, {"text": "c"}, {"text": "d", "n": "mixed"}]
    file.write_text("\n".join(map(json.dumps, rows)))
    schemas = [table.schema for _, table, _ in read_all(file, part_rows=1)]
    assert {schema.field("text").type for schema in schemas} == {pa.string()}
    assert all(schema.names == ["text", "n"] for schema in schemas)


def test_csv_is_read_as_texts(tmp_path):
    file = tmp_path / "a.csv"
    file.write_bytes('id,text\n007,"two\nlines, one cell"\n8,\n9,é\n'.encode())
    assert rows_of(read_all(file)) == [
        {"id": "007", "text": "two\nlines, one cell"},
        {"id": "8", "text": None},
        {"id": "9", "text": "é"},
    ]


def test_bytes_that_are_not_utf8_are_an_error_of_their_row(tmp_path):
    texts = pa.array([b"fine", b"\xff\xfe", b"too"], pa.binary()).view(pa.binary())
    table = pa.table({"text": pa.Array.from_buffers(pa.string(), 3, texts.buffers())})
    pq.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_bytes(b"text\nfine\n\xff\xfe\ntoo\n")
    for name in ("a.parquet", "a.csv"):
        [(part, read, errors)] = read_all(tmp_path / name)
        work = Columns().work(part, read, errors)
        assert work.texts == [b"fine", b"too"]
        assert work.errors == [(1, "the text is not UTF-8")]


def test_a_template_joins_columns_and_leaves_out_what_is_null():
    table = pa.table({"title": ["A", None, None], "n": [1, 2, None]})
    columns = Columns(template="{title}: {n}{{}}")
    work = columns.work(None, table)
    assert work.texts == [b"A: 1{}", b": 2{}"]
    assert work.errors == [(2, "no text")]
    assert work.table.column_names == []


def test_a_hugging_face_folder_is_read_in_its_order(tmp_path):
    for number in range(2):
        table = pa.table({"text": [f"{number}a", f"{number}b"]})
        with pa.ipc.new_stream(tmp_path / f"data-0000{number}-of-00002.arrow", table.schema) as writer:
            writer.write_table(table)
    state = {"_data_files": [{"filename": f"data-0000{number}-of-00002.arrow"} for number in range(2)]}
    (tmp_path / "state.json").write_text(json.dumps(state))
    (tmp_path / "dataset_info.json").write_text("{}")
    assert [row["text"] for row in rows_of(read_all(tmp_path))] == ["0a", "0b", "1a", "1b"]
    (tmp_path / "state.json").write_text(json.dumps({**state, "_indices_files": [{"filename": "i.arrow"}]}))
    with pytest.raises(Refused, match="flatten_indices"):
        find_files(str(tmp_path))


def test_compressed_lines_are_read_whole(tmp_path):
    import gzip

    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.writelines(f'{{"text": "{number}"}}\n' for number in range(5))
    reads = read_all(tmp_path, part_rows=2)
    assert [row["text"] for row in rows_of(reads)] == list("01234")
    assert sum(part.amount for part, _, _ in reads) == (tmp_path / "a.jsonl.gz").stat().st_size


def test_parts_end_with_row_groups_and_have_at_most_so_many_rows(tmp_path):
    pq.write_table(pa.table({"text": list("abcdefghij")}), tmp_path / "a.parquet", row_group_size=4)
    reads = read_all(tmp_path, part_rows=3)
    assert ["".join(table["text"].to_pylist()) for _, table, _ in reads] == ["abc", "d", "efg", "h", "ij"]
    assert [part.place for part, _, _ in reads] == [f"r{row:012d}" for row in (0, 3, 4, 7, 8)]


def test_files_of_several_kinds_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("text\na\n")
    (tmp_path / "b.jsonl").write_text("{}\n")
    with pytest.raises(Refused, match="several kinds: csv, jsonl"):
        find_files(str(tmp_path))


def test_a_source_without_files_is_refused(tmp_path):
    with pytest.raises(Refused, match="does not exist"):
        find_files(str(tmp_path / "missing"))
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(Refused, match="no files that end in"):
        find_files(str(tmp_path))
    with pytest.raises(Refused, match=r"a\.txt does not end in"):
        find_files(str(tmp_path / "a.txt"))
