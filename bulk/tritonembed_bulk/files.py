"""Sources that are files: Parquet, JSON lines, CSV, and the Arrow files of a Hugging Face data set folder.

A source is divided into spans, which tasks read side by side; a span into parts of some rows. Both depend on the files
alone, so a job that goes on finds the same parts.
"""

from __future__ import annotations

import csv as csv_text
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import PurePosixPath
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv, fs

from tritonembed_bulk.parts import InputFile, Part, Refused
from tritonembed_bulk.store import locate, version_of

SUFFIXES = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".arrow": "arrow",
}
LINES_SPAN = 128 * 1024 * 1024
"""Bytes of JSON lines that one task reads."""
BLOCK = 4 * 1024 * 1024
"""Bytes that are read at once."""

Errors = list[tuple[int, str]]
Read = tuple[Part, pa.Table, Errors]
"""A part, its rows, and those rows that could not be read, with the reason."""


@dataclass(frozen=True)
class Span:
    """What one task reads. start, stop: row groups, or bytes; 0, 0: all. row: the number of the first row, if known.
    amount: its share of the source's total. is_exact: whether the amounts of its parts reach this sum only together."""

    input: InputFile
    start: int = 0
    stop: int = 0
    row: int = 0
    amount: int = 0
    is_exact: bool = False


class Source(Protocol):
    """What the rows are read from. Can be pickled."""

    def spans(self) -> list[Span]:
        """The spans of all of the input. Raises Refused."""

    def names(self) -> list[str]:
        """The columns."""

    def read(self, span: Span, part_rows: int) -> Iterator[Read]:
        """The parts of a span, in order. Raises Refused if the input changed since it was listed."""


@dataclass(frozen=True)
class Files:
    """Files of one kind, below a folder or alone. columns: those to read; None: all."""

    location: str
    kind: str
    paths: tuple[str, ...]
    """Relative to the location; "" is the location itself."""

    def spans(self) -> list[Span]:
        """See `Source`."""
        return [span for path in self.paths for span in self._spans_of(self._input(path))]

    def names(self) -> list[str]:
        """See `Source`."""
        found, path = self._open(self.paths[0])
        if self.kind == "parquet":
            return list(pq.read_schema(path, filesystem=found).names)
        if self.kind == "jsonl":
            return self._line_schema().names  # type: ignore[no-any-return]
        if self.kind == "csv":
            return _csv_names(found, path)
        with found.open_input_file(path) as file:
            return list(_open_arrow(file).schema.names)

    def read(self, span: Span, part_rows: int) -> Iterator[Read]:
        """See `Source`."""
        if self._input(self._path_of(span.input)) != span.input:
            raise Refused(f"{span.input.name}: the file changed while the job ran")
        found, path = self._open(self._path_of(span.input))
        if self.kind == "jsonl":
            return _read_lines(found, path, span, part_rows, self._line_schema())
        return by_rows(self._tables(found, path, span, part_rows), span, part_rows, knows_rows=self.kind == "parquet")

    def _line_schema(self) -> pa.Schema:
        """The columns of the first JSON lines, which all parts get."""
        found, path = self._open(self.paths[0])
        with found.open_input_stream(path) as file:
            lines = file.read(BLOCK).split(b"\n")
        return _table_of(lines[:-1] or lines, pa.schema([]))[0].schema

    def _tables(self, found: fs.FileSystem, path: str, span: Span, part_rows: int) -> Iterator[pa.Table]:
        if self.kind == "parquet":
            with pq.ParquetFile(path, filesystem=found, pre_buffer=True) as file:
                groups = list(range(span.start, span.stop))
                for batch in file.iter_batches(min(part_rows, 65536), groups):
                    yield pa.Table.from_batches([batch])
        elif self.kind == "csv":
            with _open_csv(found, path) as reader:
                for batch in reader:
                    yield _as_strings(pa.Table.from_batches([batch]))
        else:
            with found.open_input_file(path) as file:
                for batch in _open_arrow(file):
                    yield pa.Table.from_batches([batch])

    def _spans_of(self, one: InputFile) -> Iterator[Span]:
        if self.kind == "parquet":
            found, path = self._open(self._path_of(one))
            metadata = pq.read_metadata(path, filesystem=found)
            row = 0
            for group in range(metadata.num_row_groups):
                rows = metadata.row_group(group).num_rows
                yield Span(one, group, group + 1, row, rows, is_exact=True)
                row += rows
        elif self.kind == "jsonl" and not _is_compressed(one.name):
            for start in range(0, one.size, LINES_SPAN):
                stop = min(start + LINES_SPAN, one.size)
                yield Span(one, start, stop, amount=stop - start, is_exact=True)
        else:
            yield Span(one, amount=one.size)

    def _open(self, path: str) -> tuple[fs.FileSystem, str]:
        found, root = locate(self.location)
        return found, f"{root}/{path}" if path else root

    def _path_of(self, one: InputFile) -> str:
        return one.name if self.paths != ("",) else ""

    def _input(self, path: str) -> InputFile:
        found, whole = self._open(path)
        info = found.get_file_info(whole)
        if info.type != fs.FileType.File:
            raise Refused(f"{path or PurePosixPath(whole).name}: the input has no such file any more")
        return InputFile(path or info.base_name, info.size, version_of(found, info))


def find_files(location: str) -> Files:
    """The files of a path or URI: a file, or all files of one kind in a folder and those below it. Raises Refused."""
    found, root = locate(location)
    info = found.get_file_info(root)
    if info.type == fs.FileType.NotFound:
        raise Refused("the source does not exist")
    if info.type == fs.FileType.File:
        return Files(location, _kind_of(root) or _refuse_kind(PurePosixPath(root).name), ("",))
    state = _hugging_face_files(found, root)
    if state:
        return Files(location, "arrow", tuple(state))
    listed = found.get_file_info(fs.FileSelector(root, recursive=True))
    names = sorted(one.path[len(root) :].lstrip("/") for one in listed if one.type == fs.FileType.File and one.size)
    visible = [name for name in names if not any(part[0] in "._" for part in PurePosixPath(name).parts)]
    kinds = {kind for name in visible if (kind := _kind_of(name))}
    if not kinds:
        raise Refused(f"the source has no files that end in {', '.join(SUFFIXES)}")
    if len(kinds) > 1:
        raise Refused(f"the source has files of several kinds: {', '.join(sorted(kinds))}; give the folder of one kind")
    kind = kinds.pop()
    return Files(location, kind, tuple(name for name in visible if _kind_of(name) == kind))


def _hugging_face_files(found: fs.FileSystem, root: str) -> list[str]:
    """The Arrow files of a folder that `Dataset.save_to_disk` wrote. Raises Refused."""
    try:
        with found.open_input_stream(f"{root}/state.json") as file:
            state = json.loads(file.read())
    except FileNotFoundError:
        return []
    except ValueError:
        raise Refused("state.json of the data set is damaged") from None
    if state.get("_indices_files"):
        raise Refused("the data set is a selection of rows: call flatten_indices() before save_to_disk()")
    return [str(one["filename"]) for one in state.get("_data_files") or []]


def _kind_of(name: str) -> str | None:
    stem = name[: -len(PurePosixPath(name).suffix)] if _is_compressed(name) else name
    kind = SUFFIXES.get(PurePosixPath(stem).suffix.lower())
    return kind if kind in ("jsonl", "csv") or stem == name else None


def _is_compressed(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in (".gz", ".zst", ".bz2", ".lz4")


def _refuse_kind(name: str) -> str:
    raise Refused(f"{name} does not end in {', '.join(SUFFIXES)}")


def by_rows(tables: Iterator[pa.Table], span: Span, part_rows: int, *, knows_rows: bool) -> Iterator[Read]:
    """Parts of `part_rows` rows each, named by the number of their first row in the input. knows_rows: whether amounts
    are rows."""
    row = span.row
    regrouped = _regroup(tables, part_rows)
    table = next(regrouped, None)
    while table is not None:
        after = next(regrouped, None)
        # The bytes of a file's parts are unknown, so the last part counts all of the file's bytes.
        amount = table.num_rows if knows_rows else span.amount if after is None else 0
        yield Part(span.input, span.start, f"r{row:012d}", amount), table, []
        row += table.num_rows
        table = after


def _regroup(tables: Iterator[pa.Table], rows: int) -> Iterator[pa.Table]:
    waiting: list[pa.Table] = []
    total = 0
    for table in tables:
        waiting.append(table)
        total += table.num_rows
        while total >= rows:
            joined = pa.concat_tables(waiting)
            yield joined.slice(0, rows)
            waiting, total = [joined.slice(rows)], total - rows
    if total:
        yield pa.concat_tables(waiting)


def _csv_names(found: fs.FileSystem, path: str) -> list[str]:
    with found.open_input_stream(path) as file:
        text = file.read(BLOCK).decode("utf-8-sig", errors="replace")
    return next(csv_text.reader(text.splitlines(keepends=True)), [])


def _open_csv(found: fs.FileSystem, path: str) -> Any:
    """A reader of batches. All columns are bytes: nothing in the file gives a type, and they may not be UTF-8."""
    types = {name: pa.large_binary() for name in _csv_names(found, path)}
    return csv.open_csv(
        found.open_input_stream(path),
        csv.ReadOptions(block_size=BLOCK),
        csv.ParseOptions(newlines_in_values=True),
        csv.ConvertOptions(
            column_types=types, strings_can_be_null=True, quoted_strings_can_be_null=False, null_values=[""]
        ),
    )


def _as_strings(table: pa.Table) -> pa.Table:
    """Columns of bytes as strings, if all of their values are UTF-8."""
    for place, name in enumerate(table.column_names):
        try:
            table = table.set_column(place, name, table.column(place).cast(pa.large_string()))
        except pa.ArrowInvalid:
            continue
    return table


def _open_arrow(file: Any) -> Any:
    """The batches of an Arrow stream, which Hugging Face's data sets are, or of an Arrow file."""
    try:
        return pa.ipc.open_stream(file)
    except pa.ArrowInvalid:
        reader = pa.ipc.open_file(file)
        return pa.RecordBatchReader.from_batches(
            reader.schema, (reader.get_batch(index) for index in range(reader.num_record_batches))
        )


def _read_lines(found: fs.FileSystem, path: str, span: Span, part_rows: int, schema: pa.Schema) -> Iterator[Read]:
    """Parts of lines; a span has those lines that begin in it."""
    whole = not span.stop
    with found.open_input_stream(path) if whole else found.open_input_file(path) as file:
        if span.start:
            file.seek(span.start - 1)
        lines = _lines(file)
        position = span.start
        if span.start:
            # The end of a line that began before the span, or only its line break.
            position += len(next(lines, b"")) - 1
        for index in count():
            taken: list[bytes] = []
            begin = position
            while len(taken) < part_rows and (whole or position < span.stop):
                line = next(lines, None)
                if line is None:
                    break
                taken.append(line)
                position += len(line)
            if not taken:
                return
            is_last = whole and len(taken) < part_rows
            amount = position - begin if not whole else span.amount if is_last else 0
            yield Part(span.input, span.start, f"b{span.start:014d}-{index:06d}", amount), *_table_of(taken, schema)


def _lines(file: Any) -> Iterator[bytes]:
    """Lines with their breaks."""
    rest = b""
    while block := file.read(BLOCK):
        *whole, last = block.split(b"\n")
        for line in whole:
            yield rest + line + b"\n"
            rest = b""
        rest += last
    if rest:
        yield rest


def _table_of(lines: list[bytes], schema: pa.Schema) -> tuple[pa.Table, Errors]:
    """schema: columns that the table gets in any case, with these types if the values fit."""
    rows: list[dict[str, Any]] = []
    errors: Errors = []
    for line in lines:
        if not line.strip():
            continue
        row, reason = _object(line)
        if reason:
            errors.append((len(rows), reason))
        rows.append(row)
    names = [*schema.names, *dict.fromkeys(name for row in rows for name in row if name not in schema.names)]
    types = {field.name: field.type for field in schema}
    columns = {name: _column([row.get(name) for row in rows], types.get(name)) for name in names}
    return pa.table(columns), errors


def _object(line: bytes) -> tuple[dict[str, Any], str]:
    """A line's row, and the reason if the line is not a row."""
    try:
        found = json.loads(line.decode())
    except UnicodeDecodeError:
        return {}, "the line is not UTF-8"
    except (ValueError, RecursionError):
        return {}, "the line is not JSON"
    return (found, "") if isinstance(found, dict) else ({}, "the line is not a JSON object")


def _column(values: list[Any], kind: pa.DataType | None) -> pa.Array:
    """Values of one kind unchanged; mixtures, and values without a type in Arrow, as JSON."""
    for wanted in (kind, None):
        try:
            return pa.array(values, wanted)
        except (pa.ArrowException, ValueError, TypeError, OverflowError):
            continue
    return pa.array([None if value is None else json.dumps(value) for value in values], pa.string())
