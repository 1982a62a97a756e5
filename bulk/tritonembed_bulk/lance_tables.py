"""Lance: a LanceDB table as source or sink. Its location ends in `.lance`.

Each part of the sink is a fragment of its own, which no reader sees. Its record has the fragment's description. When
all parts are there, one commit makes them the table. Files of killed workers are in no record, so not in the table.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl

import pyarrow as pa

from tritonembed_bulk.files import Read, Span, by_rows
from tritonembed_bulk.parts import FOLDER, JOB, InputFile, Record, Refused
from tritonembed_bulk.sinks import METADATA, Written
from tritonembed_bulk.store import Store

SUFFIX = ".lance"
SCHEMA, COMMITTED = f"{FOLDER}/schema.arrow", f"{FOLDER}/lance.json"
ROWS_AT_ONCE = 8192
OF_ONE_PART = ("part", "input", "input_version")
"""Metadata of single parts, which the table of all parts leaves out."""
FOR_EVER = timedelta(days=36500)


def is_lance(location: str) -> bool:
    """Whether a location is that of a Lance table."""
    return location.partition("?")[0].rstrip("/").endswith(SUFFIX)


def find_table(location: str) -> LanceSource:
    """A table as it is now. Raises Refused."""
    with _refusals():
        return LanceSource(location, _open(location).version)


@dataclass(frozen=True)
class LanceSource:
    """A version of a table. Its fragments are the spans: an added one is new, one with other rows has changed."""

    location: str
    version: int

    def spans(self) -> list[Span]:
        """See `Source`."""
        with _refusals():
            return [self._span(fragment) for fragment in self._table().get_fragments()]

    def names(self) -> list[str]:
        """See `Source`."""
        with _refusals():
            return list(self._table().schema.names)

    def read(self, span: Span, part_rows: int) -> Iterator[Read]:
        """See `Source`. Reads the version that was listed, whatever is written meanwhile."""
        with _refusals():
            fragment = self._table().get_fragment(span.start)
            batches = fragment.to_batches(batch_size=min(part_rows, ROWS_AT_ONCE))
            yield from by_rows((pa.Table.from_batches([batch]) for batch in batches), span, part_rows, knows_rows=True)

    def _table(self) -> Any:
        return _open(self.location, version=self.version)

    @staticmethod
    def _span(fragment: Any) -> Span:
        # Lance never changes a file: the description names other ones if rows are deleted or updated.
        described = json.dumps(fragment.metadata.to_json(), sort_keys=True)
        rows = fragment.count_rows()
        one = InputFile(f"fragment-{fragment.fragment_id}", rows, hashlib.sha256(described.encode()).hexdigest()[:16])
        return Span(one, fragment.fragment_id, amount=rows, is_exact=True)


@dataclass(frozen=True)
class LanceSink:
    """A table, whose folder has the job's records, too."""

    location: str
    store: Store

    def check(self) -> None:
        """Raise Refused if there is a table that no job has made: it would be replaced."""
        if self.store.read(JOB) is None and self.store.list("_versions"):
            raise Refused("the table exists already, and no job has made it: choose another name")

    def write(self, name: str, table: pa.Table) -> Written:  # noqa: ARG002
        """See `Sink`. Raises Refused if the part has other columns than the parts before."""
        metadata = {key: value for key, value in (table.schema.metadata or {}).items() if not _is_of_one_part(key)}
        table = table.replace_schema_metadata(metadata)
        self._check_schema(table.schema)
        if not table.num_rows:
            return Written(0, sink=[])
        with _refusals() as lance:
            address, options = _address(self.location)
            fragments = lance.fragment.write_fragments(
                table, address, mode="overwrite", max_rows_per_file=len(table), storage_options=options
            )
        described = [fragment.to_json() for fragment in fragments]
        size = sum(file["file_size_bytes"] or 0 for one in described for file in one["files"])
        return Written(size, sink=described)

    def finish(self, records: Sequence[Record]) -> None:
        """Make the parts the table, and remove files that are in no version of it."""
        schema = self.store.read(SCHEMA)
        if schema is None:
            return
        described = [json.dumps(one) for record in sorted(records, key=lambda one: one.part) for one in record.sink]
        note = json.dumps({"fragments": hashlib.sha256("\n".join(described).encode()).hexdigest()}).encode()
        if self.store.read(COMMITTED) == note:
            return  # a table that was changed since then, such as compacted, stays so
        with _refusals() as lance:
            address, options = _address(self.location)
            parts = [lance.fragment.FragmentMetadata.from_json(one) for one in described]
            whole = lance.LanceOperation.Overwrite(pa.ipc.read_schema(pa.py_buffer(schema)), parts)
            table = lance.LanceDataset.commit(address, whole, storage_options=options)
            table.cleanup_old_versions(older_than=FOR_EVER, delete_unverified=True)
        self.store.put(COMMITTED, note)

    def _check_schema(self, schema: pa.Schema) -> None:
        text = schema.serialize().to_pybytes()
        known = self.store.read(SCHEMA)
        if known is None and not self.store.create(SCHEMA, text):
            known = self.store.read(SCHEMA)
        if known is None:
            return
        before = pa.ipc.read_schema(pa.py_buffer(known))
        if not before.equals(schema):
            other = sorted({*before} ^ {*schema}, key=str)
            names = ", ".join(dict.fromkeys(field.name for field in other))
            raise Refused(f"a table has one type per column, and parts of the input differ in {names or 'their order'}")


def _is_of_one_part(key: bytes) -> bool:
    return key.decode(errors="replace").removeprefix(METADATA) in OF_ONE_PART


@contextmanager
def _refusals() -> Iterator[Any]:
    """The library. Its errors become Refused, without their paths."""
    # It is read once, by the first import.
    os.environ.setdefault("LANCE_LOG", "error")
    try:
        import lance
        import lance.fragment
    except ImportError:
        raise Refused("a Lance table needs its library: pip install 'tritonembed[lance]'") from None
    try:
        yield lance
    except (ValueError, OSError, RuntimeError) as error:
        is_missing = "not found" in str(error).lower()
        reason = "there is no such table, or its version is gone" if is_missing else type(error).__name__
        raise Refused(f"Lance: {reason}") from None


def _open(location: str, version: int | None = None) -> Any:
    import lance

    address, options = _address(location)
    return lance.dataset(address, version=version, storage_options=options)


def _address(location: str) -> tuple[str, dict[str, str] | None]:
    """The address as Lance wants it, and its options: pyarrow's file systems have them in the URI."""
    address, _, query = location.partition("?")
    given = dict(parse_qsl(query))
    options = {"aws_region": given["region"]} if "region" in given else {}
    if "endpoint_override" in given:
        scheme = given.get("scheme", "https")
        options |= {"aws_endpoint": f"{scheme}://{given['endpoint_override']}", "allow_http": str(scheme == "http")}
    return address.rstrip("/"), options or None
