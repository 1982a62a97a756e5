"""Sinks that are databases: PostgreSQL, with pgvector if installed, and Qdrant. The records are in a separate folder.

A part that is written again replaces its rows: they are named by the id column, and by the chunk's number.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tritonembed_bulk.parts import Record, Refused
from tritonembed_bulk.rows import CHUNK_COLUMNS, VECTORS
from tritonembed_bulk.sinks import METADATA, Written

POSTGRES, QDRANT = ("postgresql://", "postgres://"), "qdrant:"
POINTS_AT_ONCE = 512
_NAMESPACE = uuid.UUID("6a6b1f0e-54b2-4c05-8d4e-6f1d1a7f5d3c")
"""The namespace of points' UUIDs, for rows whose ids are not numbers."""


def database_sink(location: str, id_column: str | None) -> PostgresSink | QdrantSink | None:
    """The sink of a database's address, which names a table or collection after `#`; None for any other location.

    Raises Refused if the name or the id column is missing.
    """
    if not location.startswith((*POSTGRES, QDRANT)):
        return None
    address, _, name = location.partition("#")
    if not name:
        raise Refused("a database's address must end in #NAME, the table or collection")
    if id_column is None:
        raise Refused("a database needs --id-column, which names its rows")
    if address.startswith(QDRANT):
        return QdrantSink(address.removeprefix(QDRANT), name, id_column)
    return PostgresSink(address, name, id_column)


def postgres_driver() -> Any:
    """psycopg. Raises Refused if it is not installed."""
    try:
        import psycopg
        import psycopg.sql
    except ImportError:
        raise Refused("PostgreSQL needs psycopg: pip install 'tritonembed[postgres]'") from None
    return psycopg


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """A transaction of PostgreSQL. Raises Refused with the database's own reason."""
    psycopg = postgres_driver()
    try:
        with psycopg.connect(address) as connection:
            yield connection
    except psycopg.Error as error:
        # Messages have the row or the address in addition to the reason.
        reason = error.diag.message_primary
        if reason is None:
            is_away = isinstance(error, psycopg.OperationalError)
            reason = "it can't be reached, or refuses the connection" if is_away else type(error).__name__
        raise Refused(f"PostgreSQL: {reason}") from None


@dataclass(frozen=True)
class PostgresSink:
    """A table: a transaction per part, with COPY. Vectors are pgvector's `vector` if the database has it, else real[].

    Whole numbers become smallint[], packed bits bytea. The table is made by the first part; its comment names the
    embedding space.
    """

    address: str
    table: str
    id_column: str

    def write(self, name: str, table: pa.Table) -> Written:  # noqa: ARG002
        """See `Sink`. Raises Refused with the database's own reason."""
        sql = postgres_driver().sql
        keys = self._keys(table)
        columns = [sql.Identifier(column) for column in table.column_names]
        others = [sql.Identifier(column) for column in table.column_names if column not in keys]
        target, names = sql.Identifier(self.table), sql.SQL(", ").join(columns)
        with connected(self.address) as connection:
            # Several parts come at once, and only one can make the table.
            connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [self.table])
            has_vector = self._has_vector(connection)
            self._make_table(connection, table, keys, has_vector)
            connection.execute(sql.SQL("CREATE TEMP TABLE part (LIKE {}) ON COMMIT DROP").format(target))
            with connection.cursor().copy(sql.SQL("COPY part ({}) FROM STDIN").format(names)) as copy:
                for row in _rows(table, as_text=has_vector and _kind(table) == "real[]"):
                    copy.write_row(row)
            updates = sql.SQL(", ").join(sql.SQL("{0} = excluded.{0}").format(column) for column in others)
            statement = "INSERT INTO {} ({}) SELECT {} FROM part ON CONFLICT ({}) DO UPDATE SET {}"
            key_names = sql.SQL(", ").join(map(sql.Identifier, keys))
            connection.execute(sql.SQL(statement).format(target, names, names, key_names, updates))
        return Written(table.nbytes)

    def finish(self, records: Sequence[Record]) -> None:
        """Nothing is left to do."""

    def _keys(self, table: pa.Table) -> list[str]:
        return [self.id_column, *(name for name in CHUNK_COLUMNS[:1] if name in table.column_names)]

    @staticmethod
    def _has_vector(connection: Any) -> bool:
        found = connection.execute("SELECT 1 FROM pg_type WHERE typname = 'vector'").fetchone()
        return found is not None

    def _make_table(self, connection: Any, table: pa.Table, keys: list[str], has_vector: bool) -> None:
        from psycopg import sql

        kind = _kind(table)
        if has_vector and kind == "real[]":
            kind = f"vector({table.schema.field(VECTORS).type.list_size})"
        types = [kind if field.name == VECTORS else _type_of(field.type) for field in table.schema]
        columns = [
            sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(type_))
            for name, type_ in zip(table.column_names, types, strict=True)
        ]
        columns.append(sql.SQL("PRIMARY KEY ({})").format(sql.SQL(", ").join(map(sql.Identifier, keys))))
        target = sql.Identifier(self.table)
        statement = sql.SQL("CREATE TABLE IF NOT EXISTS {} ({})")
        connection.execute(statement.format(target, sql.SQL(", ").join(columns)))
        space = sql.Literal(f"embedding space {_space_of(table)}")
        connection.execute(sql.SQL("COMMENT ON TABLE {} IS {}").format(target, space))


@dataclass(frozen=True)
class QdrantSink:
    """A collection, made by the first part. address: a server's (http://…), or a folder for Qdrant's local mode, which
    only one process can have open: give --workers 1 with it. Points have the other columns as payload. A point's id is
    the id column's number, or a UUID made from an id that is not a number.
    """

    address: str
    collection: str
    id_column: str

    def write(self, name: str, table: pa.Table) -> Written:  # noqa: ARG002
        """See `Sink`."""
        try:
            from qdrant_client import QdrantClient, models
        except ImportError:
            raise Refused("Qdrant needs its client: pip install 'tritonembed[qdrant]'") from None
        if _kind(table) == "bytea":
            raise Refused("Qdrant takes numbers, not packed bits: choose another --embedding-type")
        if "://" in self.address:
            client = QdrantClient(url=self.address, timeout=60)
        else:
            client = QdrantClient(path=self.address)
        try:
            size = table.schema.field(VECTORS).type.list_size
            if not client.collection_exists(self.collection):
                params = models.VectorParams(size=size, distance=models.Distance.COSINE)
                client.create_collection(self.collection, vectors_config=params)
            space = _space_of(table)
            for batch in table.to_batches(POINTS_AT_ONCE):
                if points := [self._point(row, space) for row in batch.to_pylist()]:
                    client.upsert(self.collection, points, wait=True)
        finally:
            client.close()
        return Written(table.nbytes)

    def finish(self, records: Sequence[Record]) -> None:
        """Nothing is left to do."""

    def _point(self, row: dict[str, Any], space: str) -> Any:
        from qdrant_client import models

        vector = row.pop(VECTORS)
        own, chunk = row[self.id_column], row.get(CHUNK_COLUMNS[0])
        is_number = isinstance(own, int) and own >= 0 and chunk is None
        point = own if is_number else str(uuid.uuid5(_NAMESPACE, json.dumps([str(own), chunk])))
        payload = {name: _json_value(value) for name, value in row.items()}
        return models.PointStruct(id=point, vector=vector, payload={**payload, "embedding_space": space})


def _space_of(table: pa.Table) -> str:
    return str((table.schema.metadata or {}).get(f"{METADATA}embedding_space".encode(), b"").decode())


def _kind(table: pa.Table) -> str:
    """PostgreSQL's type for the vectors."""
    kind = (table.schema.metadata or {}).get(f"{METADATA}embedding_type".encode(), b"float").decode()
    return {"float": "real[]", "float16": "real[]", "int8": "smallint[]", "uint8": "smallint[]"}.get(kind, "bytea")


def _type_of(kind: pa.DataType) -> str:
    if pa.types.is_boolean(kind):
        return "boolean"
    if pa.types.is_integer(kind):
        return "bigint"
    if pa.types.is_floating(kind):
        return "double precision"
    return "timestamptz" if pa.types.is_timestamp(kind) else "text"


def _rows(table: pa.Table, *, as_text: bool) -> Iterable[list[Any]]:
    """Values for COPY. as_text: vectors as pgvector reads them."""
    is_bytes = _kind(table) == "bytea"
    for batch in table.to_batches(POINTS_AT_ONCE):
        for row in batch.to_pylist():
            vector = row[VECTORS]
            if as_text:
                row[VECTORS] = json.dumps([float(number) for number in vector])
            elif is_bytes:
                row[VECTORS] = bytes(number & 255 for number in vector)
            yield [
                json.dumps(value) if isinstance(value, (dict, list)) and name != VECTORS else value
                for name, value in row.items()
            ]


def _json_value(value: Any) -> Any:
    """A value as JSON can hold it."""
    return value if value is None or isinstance(value, (bool, int, float, str, list, dict)) else str(value)
