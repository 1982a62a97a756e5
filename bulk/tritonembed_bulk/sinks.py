"""Sinks, which write the vectors of a part. Files are here, databases in `databases`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tritonembed_bulk.parts import Record
from tritonembed_bulk.rows import CHUNK_COLUMNS, VECTORS, Work
from tritonembed_bulk.store import Store
from tritonembed_protocol.types import OUTPUT_TYPES

METADATA = "tritonembed."
"""The prefix of keys in a file's metadata."""

ARROW_TYPES = {name: pa.from_numpy_dtype(kind.dtype) for name, kind in OUTPUT_TYPES.items()}


@dataclass(frozen=True)
class Written:
    """The output of a part. size: bytes. files: names in the sink's store. sink: a JSON value for `finish`."""

    size: int
    files: list[str] = field(default_factory=list)
    sink: Any = None


class Sink(Protocol):
    """Writes parts. Can be pickled. A part that is written twice is there once."""

    def write(self, name: str, table: pa.Table) -> Written:
        """Write a part atomically. table: the kept columns, and the vectors last."""

    def finish(self, records: Sequence[Record]) -> None:
        """Called on the driver when all parts are committed."""


def output_table(work: Work, embedding_type: str, metadata: dict[str, str]) -> pa.Table:
    """The kept columns of the rows that have vectors, the columns of chunks, and the vectors. metadata: the file's."""
    assert work.vectors is not None
    rows = work.rows if work.counts is None else np.repeat(work.rows, work.counts)
    is_whole = work.counts is None and len(rows) == work.table.num_rows
    table = work.table if is_whole else work.table.take(pa.array(rows, pa.int64()))
    if work.counts is not None and work.offsets is not None:
        numbers = np.arange(len(rows)) - np.repeat(np.cumsum(work.counts) - work.counts, work.counts)
        for name, values in zip(CHUNK_COLUMNS, (numbers, *work.offsets.T), strict=True):
            table = table.append_column(name, pa.array(np.ascontiguousarray(values, np.int32)))
    values = pa.array(np.ascontiguousarray(work.vectors).reshape(-1), ARROW_TYPES[embedding_type])
    table = table.append_column(VECTORS, pa.FixedSizeListArray.from_arrays(values, work.vectors.shape[1]))
    named = {**metadata, "embedding_type": embedding_type, "embedding_space": work.space, "part": work.part.name}
    named |= {"input": work.part.input.name, "input_version": work.part.input.version}
    old = table.schema.metadata or {}
    return table.replace_schema_metadata({**old, **{METADATA + key: value for key, value in named.items()}})


@dataclass(frozen=True)
class ParquetSink:
    """A Parquet file per part."""

    store: Store

    def write(self, name: str, table: pa.Table) -> Written:
        """See `Sink`."""
        data = parquet_bytes(table)
        file = f"{name}.parquet"
        self.store.put(file, data)
        return Written(len(data), [file])

    def finish(self, records: Sequence[Record]) -> None:
        """Nothing is left to do."""


@dataclass(frozen=True)
class NumpySink:
    """Two files per part: the vectors as .npy [rows, columns], which FAISS reads, and the other columns as Parquet."""

    store: Store

    def write(self, name: str, table: pa.Table) -> Written:
        """See `Sink`."""
        column = table.column(VECTORS).combine_chunks()
        vectors = column.flatten().to_numpy().reshape(len(column), column.type.list_size)
        file = io.BytesIO()
        np.save(file, vectors)
        rows = parquet_bytes(table.drop_columns([VECTORS]))
        # The rows go first: vectors without their ids are worth nothing.
        self.store.put(f"{name}.ids.parquet", rows)
        self.store.put(f"{name}.npy", file.getvalue())
        return Written(len(rows) + file.tell(), [f"{name}.npy", f"{name}.ids.parquet"])

    def finish(self, records: Sequence[Record]) -> None:
        """Nothing is left to do."""


def parquet_bytes(table: pa.Table) -> pa.Buffer:
    """A table as a Parquet file. Vectors look random: neither a dictionary nor statistics help, nor compression."""
    vectors = f"{VECTORS}.list.element"
    others = [name for name in table.column_names if name != VECTORS]
    sink = pa.BufferOutputStream()
    flat = not any(pa.types.is_nested(table.schema.field(name).type) for name in others)
    pq.write_table(
        table,
        sink,
        # For nested columns, pyarrow would want the names of what is in them.
        compression={vectors: "none", **dict.fromkeys(others, "zstd")} if flat else "zstd",
        use_dictionary=others if flat else False,
        write_statistics=others if flat else False,
    )
    return sink.getvalue()
