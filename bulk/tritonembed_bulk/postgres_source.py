"""A query of PostgreSQL as a source, in ranges of the id column, which tasks read at the same time.

A range begins at a row whose id has a certain hash. So a row that is added or removed changes only its own range, where
ranges of numbered rows would all move. A range's version is a hash of its rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tritonembed_bulk.databases import POSTGRES, connected, postgres_driver
from tritonembed_bulk.files import Read, Span, by_rows
from tritonembed_bulk.parts import InputFile, Refused

PARTS_PER_RANGE = 8
"""Parts per range, on average. A change costs the computation of its range; each range ends with a part that is not
full."""
ROWS_AT_ONCE = 2048
"""Rows that the server's cursor gives at a time."""

TYPES = {
    "bool": pa.bool_(),
    "int2": pa.int16(),
    "int4": pa.int32(),
    "int8": pa.int64(),
    "float4": pa.float32(),
    "float8": pa.float64(),
    "bytea": pa.binary(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us"),
    "timestamptz": pa.timestamp("us", "UTC"),
}
"""Columns of other types are read as PostgreSQL's text."""

RANGES = """
SELECT (array_agg(key ORDER BY key))[1], count(*), sum(hash), bool_or(key IS NULL)
FROM (SELECT key, hash, count(*) FILTER (WHERE begins) OVER (ORDER BY key) AS number FROM (
    SELECT q.{key} AS key, hashtextextended(q::text, 0) AS hash,
           mod(hashtextextended(q.{key}::text, 1), {rows}) = 0 AS begins
    FROM ({query}
    ) q) AS read) AS numbered
GROUP BY number ORDER BY number"""
STATE = "SELECT count(*), sum(hashtextextended(q::text, 0)) FROM ({query}\n) q WHERE {bounds}"
ROWS = "SELECT {columns} FROM ({query}\n) q WHERE {bounds} ORDER BY q.{key}, hashtextextended(q::text, 0)"
COLUMNS = "SELECT * FROM ({query}\n) q LIMIT 0"


def is_postgres(location: str) -> bool:
    """Whether a location is that of a PostgreSQL."""
    return location.startswith(POSTGRES)


def postgres_source(location: str, query: str | None, key: str | None, part_rows: int) -> PostgresSource:
    """The source of an address with `#TABLE`, or of a query. key: the id column. Raises Refused."""
    sql = postgres_driver().sql
    address, _, table = location.partition("#")
    if bool(table) == (query is not None):
        raise Refused("PostgreSQL as the source needs --query, or #TABLE at the end of its address")
    if key is None:
        raise Refused("PostgreSQL as the source needs --id-column: rows are read by ranges of it")
    if query is None:
        names = [sql.Identifier(name) for name in table.split(".")]
        query = sql.SQL("SELECT * FROM {}").format(sql.SQL(".").join(names)).as_string(None)
    return PostgresSource(address, query.strip().rstrip(";"), key, PARTS_PER_RANGE * part_rows)


@dataclass(frozen=True)
class Range(Span):
    """Rows with first <= id < after; None: no bound."""

    first: Any = None
    after: Any = None


@dataclass(frozen=True)
class PostgresSource:
    """The rows of a query. key: a column that orders them. range_rows: of a range, on average."""

    address: str
    query: str
    key: str
    range_rows: int

    def spans(self) -> list[Span]:
        """See `Source`. The database reads all rows once."""
        with connected(self.address) as connection:
            found = connection.execute(self._statement(RANGES, rows=self.range_rows)).fetchall()
        if any(has_null for *_, has_null in found):
            raise Refused(f"rows of the query have no {self.key!r}, the id column")
        firsts = [first for first, *_ in found]
        bounds = zip([None, *firsts[1:]], [*firsts[1:], None], strict=True) if found else ()
        return [
            Range(InputFile(_name(first), rows, str(state)), 0, 0, 0, rows, is_exact=True, first=first, after=after)
            for (first, after), (_, rows, state, _) in zip(bounds, found, strict=True)
        ]

    def names(self) -> list[str]:
        """See `Source`."""
        return [name for name, _ in self._columns()]

    def read(self, span: Span, part_rows: int) -> Iterator[Read]:
        """See `Source`."""
        return by_rows(self._tables(span), span, part_rows, knows_rows=True)

    def _tables(self, span: Span) -> Iterator[pa.Table]:
        assert isinstance(span, Range)
        sql, columns = postgres_driver().sql, self._columns()
        schema = pa.schema([(name, TYPES.get(kind, pa.string())) for name, kind in columns])
        chosen = [
            sql.SQL("q.{}" if kind in TYPES else "q.{}::text").format(sql.Identifier(name)) for name, kind in columns
        ]
        bounds = self._bounds(span)
        with connected(self.address) as connection:
            # The rows must not change between the comparison with the list and the reading.
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            rows, state = connection.execute(self._statement(STATE, bounds=bounds)).fetchone()
            if (rows, str(state)) != (span.input.size, span.input.version):
                raise Refused("rows of the query changed while the job ran: go on with --resume")
            with connection.cursor("rows") as cursor:
                cursor.execute(self._statement(ROWS, bounds=bounds, columns=sql.SQL(", ").join(chosen)))
                while found := cursor.fetchmany(ROWS_AT_ONCE):
                    values = zip(*found, strict=True)
                    yield pa.table(
                        [pa.array(one, field.type) for one, field in zip(values, schema, strict=True)], schema=schema
                    )

    def _columns(self) -> list[tuple[str, str]]:
        """Names, and the names of the types."""
        with connected(self.address) as connection:
            described = connection.execute(self._statement(COLUMNS)).description
        kinds = {info.oid: info.name for info in postgres_driver().postgres.types}
        return [(column.name, kinds.get(column.type_code, "")) for column in described]

    def _bounds(self, span: Range) -> Any:
        sql = postgres_driver().sql
        key, bounds = sql.Identifier(self.key), [sql.SQL("true")]
        if span.first is not None:
            bounds.append(sql.SQL("q.{} >= {}").format(key, sql.Literal(span.first)))
        if span.after is not None:
            bounds.append(sql.SQL("q.{} < {}").format(key, sql.Literal(span.after)))
        return sql.SQL(" AND ").join(bounds)

    def _statement(self, template: str, **parts: Any) -> Any:
        sql = postgres_driver().sql
        return sql.SQL(template).format(query=sql.SQL(self.query), key=sql.Identifier(self.key), **parts)


def _name(first: Any) -> str:
    """The name of a range: a hash of its first id, because ids can be names of people."""
    return "rows" if first is None else f"rows-{hashlib.sha256(str(first).encode()).hexdigest()[:16]}"
