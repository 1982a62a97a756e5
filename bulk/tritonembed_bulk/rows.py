"""A part between stages: its rows, their texts, the stages' results, and the rows that can't be embedded."""

from __future__ import annotations

import pickle
import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tritonembed_bulk.parts import Part, Refused

VECTORS = "embedding"
"""The column of the vectors."""
CHUNK_COLUMNS = ("chunk", "chunk_start", "chunk_end")
"""Number of a chunk in its text, and its place there in characters."""
NO_TEXT, NOT_UTF8 = "no text", "the text is not UTF-8"

Ints = npt.NDArray[np.int64]


@dataclass
class Work:
    """A part between two stages.

    table: the columns that are kept, one row per input row. texts: of the rows that can be embedded, UTF-8; rows: their
    places in the table. errors: place and reason of the others.
    """

    part: Part
    table: pa.Table
    texts: list[bytes]
    rows: Ints
    errors: list[tuple[int, str]]
    ids: npt.NDArray[np.int32] | None = None
    """Token ids of all sentences, one after the other."""
    lengths: npt.NDArray[np.int32] | None = None
    """Tokens of each sentence."""
    counts: Ints | None = None
    """Sentences of each text, if texts are divided into chunks."""
    offsets: npt.NDArray[np.int32] | None = None
    """[sentences, 2]: the place of each chunk in its text."""
    vectors: npt.NDArray[Any] | None = None
    """[sentences, dimensions]; from a fleet: encoded, [texts or chunks, columns]."""
    space: str = ""
    busy: float = 0.0

    def __getstate__(self) -> dict[str, Any]:
        # Arrow's IPC writes a slice alone; its pickles have the whole array behind it.
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self.table.schema) as writer:
            writer.write_table(self.table)
        return {**self.__dict__, "table": sink.getvalue().to_pybytes()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({**state, "table": pa.ipc.open_stream(state["table"]).read_all()})

    def pack(self) -> pa.Table:
        """Make a row for Ray Data. The vectors, most of a part, are not copied: the executor's thread would wait."""
        vectors = self.vectors
        rest = replace(self, vectors=None if vectors is None else vectors[:0])
        data = np.empty(0, np.uint8) if vectors is None else np.ascontiguousarray(vectors)
        ends = pa.py_buffer(np.array([0, data.nbytes], np.int64))
        column = pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, pa.py_buffer(data)])
        return pa.table({"work": pa.array([pickle.dumps(rest, 5)], pa.large_binary()), "vectors": column})

    @staticmethod
    def unpack(batch: pa.Table) -> list[Work]:
        """The parts of a batch of rows."""
        found = []
        for packed, data in zip(_buffers(batch["work"]), _buffers(batch["vectors"]), strict=True):
            work: Work = pickle.loads(packed)
            if work.vectors is not None:
                columns = work.vectors.shape[1]
                work.vectors = np.frombuffer(data, work.vectors.dtype).reshape(-1, columns)
            found.append(work)
        return found

    def piece(self, start: int, stop: int) -> Work:
        """Some of the texts, as a part of their own before its vectors are made. It shares the table."""
        rows = self.rows[start:stop]
        if self.lengths is None:
            return replace(self, texts=self.texts[start:stop], rows=rows, errors=[])
        assert self.ids is not None
        ends = np.arange(len(self.rows) + 1) if self.counts is None else np.append(0, np.cumsum(self.counts))
        first, last = ends[start], ends[stop]
        tokens = np.append(0, np.cumsum(self.lengths, dtype=np.int64))
        return replace(
            self,
            texts=[],
            rows=rows,
            errors=[],
            ids=self.ids[tokens[first] : tokens[last]],
            lengths=self.lengths[first:last],
            counts=None if self.counts is None else self.counts[start:stop],
            offsets=None if self.offsets is None else self.offsets[first:last],
        )

    def join(self, pieces: Sequence[Work]) -> Work:
        """The part made of its pieces, at least one, which have vectors."""

        def joined(name: str) -> Any:
            values = [getattr(piece, name) for piece in pieces]
            return None if values[0] is None else np.concatenate(values)

        names = ("rows", "lengths", "counts", "offsets", "vectors")
        return replace(
            self,
            texts=[],
            ids=None,
            errors=[*self.errors, *(error for piece in pieces for error in piece.errors)],
            space=pieces[-1].space,
            busy=sum(piece.busy for piece in pieces),
            **{name: joined(name) for name in names},
        )

    def drop(self, reasons: dict[int, str]) -> None:
        """Turn texts into errors, and remove their data. reasons: by place among the texts."""
        if not reasons:
            return
        self.errors += [(int(self.rows[place]), reason) for place, reason in sorted(reasons.items())]
        kept = np.ones(len(self.rows), np.bool_)
        kept[list(reasons)] = False
        self.texts = [text for text, keep in zip(self.texts, kept, strict=True) if keep] if self.texts else []
        self.rows = self.rows[kept]
        of_sentences = kept if self.counts is None else np.repeat(kept, self.counts)
        self.counts = None if self.counts is None else self.counts[kept]
        self.lengths = None if self.lengths is None else self.lengths[of_sentences]
        self.offsets = None if self.offsets is None else self.offsets[of_sentences]
        self.vectors = None if self.vectors is None else self.vectors[of_sentences]


def _buffers(column: pa.ChunkedArray) -> list[pa.Buffer]:
    """The values of a binary column, without a copy."""
    return [value.as_buffer() for chunk in column.chunks for value in chunk]


@dataclass(frozen=True)
class Columns:
    """The columns to read. template: of the text, with {column} for columns; None: the column `text` is the text.

    id: the column that names rows in the error table and in databases. keep_text: whether the output has the text, too.
    """

    text: str = "text"
    template: str | None = None
    id: str | None = None
    keep_text: bool = False

    @property
    def of_text(self) -> list[str]:
        """The columns that make the text. Raises Refused if the template is wrong."""
        return [self.text] if self.template is None else fields_of(self.template)

    def check(self, names: Sequence[str]) -> None:
        """Raise Refused if the input lacks a column, or has one of the output's. names: the input's columns."""
        wanted = [*self.of_text, *([self.id] if self.id else [])]
        lacking = [name for name in wanted if name not in names]
        if lacking:
            raise Refused(f"the input has no column {lacking[0]!r}; it has {', '.join(names)[:300]}")
        taken = [name for name in (VECTORS, *CHUNK_COLUMNS) if name in names]
        if taken:
            raise Refused(f"the input has a column {taken[0]!r} already, which the output adds")

    def work(self, part: Part, table: pa.Table, errors: Sequence[tuple[int, str]] = ()) -> Work:
        """A part that was read. errors: rows that could not be read."""
        unreadable = {place for place, _ in errors}
        texts, rows, found = [], [], list(errors)
        for place, text in enumerate(self._texts(table)):
            if place in unreadable:
                continue
            if text is None:
                found.append((place, NO_TEXT))
            elif not _is_utf8(text):
                found.append((place, NOT_UTF8))
            else:
                texts.append(text)
                rows.append(place)
        kept = table if self.keep_text else table.drop_columns([name for name in self.of_text if name != self.id])
        return Work(part, kept, texts, np.array(rows, np.int64), found)

    def _texts(self, table: pa.Table) -> list[bytes | None]:
        parts = {name: _as_bytes(table.column(name)) for name in self.of_text}
        if self.template is None:
            return parts[self.text]
        pieces = [(literal.encode(), name) for literal, name, _, _ in string.Formatter().parse(self.template)]
        texts: list[bytes | None] = []
        for place in range(table.num_rows):
            values = {name: column[place] for name, column in parts.items()}
            if all(value is None for value in values.values()):
                texts.append(None)
            else:
                texts.append(b"".join(literal + ((values[name] or b"") if name else b"") for literal, name in pieces))
        return texts


def fields_of(template: str) -> list[str]:
    """The columns that a template names, each once. Raises Refused."""
    try:
        found = [(name, spec, conversion) for _, name, spec, conversion in string.Formatter().parse(template)]
    except ValueError as error:
        raise Refused(f"--template: {error}") from None
    names = [name for name, _, _ in found if name is not None]
    if not names or not all(names) or any(spec or conversion for _, spec, conversion in found):
        raise Refused("--template must name columns as {title}, without conversions; write {{ for a brace")
    return list(dict.fromkeys(names))


def _as_bytes(column: pa.ChunkedArray) -> list[bytes | None]:
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        # Not as strings, because nobody has checked that they are UTF-8.
        return column.cast(pa.large_binary()).to_pylist()  # type: ignore[no-any-return]
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return column.to_pylist()  # type: ignore[no-any-return]
    if pa.types.is_nested(kind):
        raise Refused(f"a column of type {kind} is no text")
    return [None if value is None else str(value).encode() for value in column.to_pylist()]


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def reason_of(message: str) -> str:
    """The reason in the error of a request of one text, without the tensor's name and the text's number."""
    return message.rpartition("text: ")[2].replace("sentence 0 ", "the text ")


def error_table(work: Work, id_column: str | None) -> pa.Table:
    """The rows that have no vector: id (the row's number in the part, if there are no ids) and reason."""
    errors = sorted(work.errors)
    places = [place for place, _ in errors]
    ids: list[str | None] = [None] * len(places)
    if id_column:
        column = work.table.column(id_column)
        ids = [str(column[place].as_py()) for place in places]
    return pa.table(
        {
            "id": pa.array(ids, pa.string()),
            "part": pa.array([work.part.name] * len(places), pa.string()),
            "row": pa.array(places, pa.int64()),
            "reason": pa.array([reason for _, reason in errors], pa.string()),
        }
    )
