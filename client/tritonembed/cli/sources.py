"""Where the texts come from: a file, standard input or the command line; read piece by piece."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .failures import CommandError, UsageError, usage_errors

BATCH_ROWS = 1024
BOM = b"\xef\xbb\xbf"


class Source:
    """Texts, and how far they have been read: ``position`` of ``total``, in rows or bytes; None if unknown."""

    def __init__(self, total: int | None) -> None:
        self.total = total
        self.position = 0

    def texts(self) -> Iterator[str]:
        """The texts, once."""
        raise NotImplementedError


class Arguments(Source):
    """Texts of the command line."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__(len(texts))
        self._texts = texts

    def texts(self) -> Iterator[str]:
        for text in self._texts:
            self.position += 1
            yield text


def choose_source(path: str | None, column: str, texts: list[str]) -> Source:
    """The texts of a file, or those of the command line. Raises UsageError if there are both, or none."""
    if path is not None and texts:
        raise UsageError("texts are given both as arguments and as --input: choose one")
    if path is not None:
        return open_source(path, column)
    if not texts:
        raise UsageError("no texts: give them as arguments, or a file with --input")
    return Arguments(texts)


class LineFile(Source):
    """A file of lines, read by one of the readers below; ``name`` is for messages."""

    def __init__(self, file: BinaryIO, name: str, size: int | None, read: Callable[[Iterator[str]], Iterator[str]]):
        super().__init__(size)
        self._file = file
        self._name = name
        self._read = read
        self._line = 0

    def texts(self) -> Iterator[str]:
        try:
            with self._file:
                yield from self._read(self._lines())
        except _RowError as error:
            # If the header, or a Parquet file's schema, lacks the column, then --column is wrong.
            kind = UsageError if isinstance(error, _HeaderError) else CommandError
            raise kind(f"{self._name}: line {self._line}: {error}") from None

    def _lines(self) -> Iterator[str]:
        for line in self._file:
            self._line += 1
            self.position += len(line)
            try:
                yield (line.removeprefix(BOM) if self._line == 1 else line).decode()
            except UnicodeDecodeError:
                raise _RowError("not UTF-8") from None


class ParquetFile(Source):
    """One column of strings of a Parquet file."""

    def __init__(self, path: Path, column: str) -> None:
        arrow = load_arrow()
        with usage_errors():
            file = path.open("rb")
        # pyarrow's own errors, and those of the text's encoding, do not name the file.
        self._damage = (arrow.ArrowException, OSError, UnicodeDecodeError)
        try:
            self._file = arrow.parquet.ParquetFile(file)
        except self._damage:
            raise UsageError(f"{path}: not a Parquet file") from None
        if column not in self._file.schema_arrow.names:
            raise UsageError(f"{path}: no column {column!r} (--column chooses one)")
        super().__init__(self._file.metadata.num_rows)
        self._name = str(path)
        self._column = column

    def texts(self) -> Iterator[str]:
        for rows in self._batches():
            for text in rows:
                if not isinstance(text, str):
                    raise CommandError(f"{self._name}: row {self.position}: column {self._column!r} is not a string")
                self.position += 1
                yield text

    def _batches(self) -> Iterator[list[Any]]:
        try:
            for batch in self._file.iter_batches(BATCH_ROWS, columns=[self._column]):
                yield batch.column(0).to_pylist()
        except self._damage:
            raise CommandError(f"{self._name}: after row {self.position}: damaged, or not UTF-8") from None


class _RowError(Exception):
    """The reason why a line is not a text."""


class _HeaderError(_RowError):
    """The reason why no line of the file is a text."""


def open_source(path: str, column: str) -> Source:
    """The source for a path, by its ending; ``-`` is lines of standard input. Raises UsageError if it is unreadable."""
    if path == "-":
        if sys.stdin is None:
            raise UsageError("standard input is closed")
        return LineFile(sys.stdin.buffer, "standard input", None, _plain)
    file = Path(path)
    readers: dict[str, Callable[[Iterator[str]], Iterator[str]]] = {
        ".txt": _plain,
        ".jsonl": lambda lines: _json(lines, column),
        ".csv": lambda lines: _csv(lines, column),
    }
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        return ParquetFile(file, column)
    if suffix not in readers:
        raise UsageError(f"{path}: the input must be .txt, .jsonl, .csv, .parquet or '-'")
    with usage_errors():
        opened = file.open("rb")
        return LineFile(opened, path, file.stat().st_size, readers[suffix])


def _plain(lines: Iterator[str]) -> Iterator[str]:
    # Every line counts, also an empty line: row n of the output is line n of the input.
    return (line.removesuffix("\n").removesuffix("\r") for line in lines)


def _json(lines: Iterator[str], column: str) -> Iterator[str]:
    for line in lines:
        if line.isspace():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise _RowError("not JSON") from None
        yield _field(row, column)


def _field(row: Any, column: str) -> str:
    if not isinstance(row, dict) or not isinstance(row.get(column), str):
        raise _RowError(f"no string {column!r} (--column chooses another)")
    text: str = row[column]
    return text


def _csv(lines: Iterable[str], column: str) -> Iterator[str]:
    csv.field_size_limit(2**31 - 1)
    # Otherwise a quote that is never closed would turn the rest of the file into one text.
    rows = csv.reader(lines, strict=True)
    try:
        header = next(rows, [])
        if column not in header:
            raise _HeaderError(f"no column {column!r} in the header (--column chooses one)")
        index = header.index(column)
        for row in rows:
            if not row:
                continue
            if index >= len(row):
                raise _RowError(f"no column {column!r}")
            yield row[index]
    except csv.Error as error:
        reason = str(error).partition(" - ")[0]  # the rest is advice for programmers
        raise _RowError(f"not CSV: {reason}") from None


def load_arrow() -> Any:
    """pyarrow with pyarrow.parquet, imported by Parquet files only. Raises UsageError if it cannot be imported."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise  # main() names the extra to install
    except ImportError as error:
        # Recent releases of pyarrow refuse numpy 1, which some servers' environments need.
        reason = str(error).partition("\n")[0]
        raise UsageError(f"Parquet files need a pyarrow that fits the other packages: {reason}") from error
    return pyarrow
