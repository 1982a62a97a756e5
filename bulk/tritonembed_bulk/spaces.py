"""`tritonembed compare-spaces`: the distance of two embedding spaces, as vectors of two models or two precisions of the
same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from tritonembed.cli.failures import UsageError, failures

if TYPE_CHECKING:
    import pyarrow as pa

EPILOG = (
    "Vectors can be mixed in one index if `mixed` is near 1: then a query's nearest rows are the same, whichever of "
    "the two made the query's vector and whichever the rows'. If only `nearest` is high, each of the two finds the "
    "same rows by itself, and an index has to be of one of them."
)
NEAREST = 10
QUERIES_AT_ONCE = 512

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Sample:
    """Some rows of an output. space: of the vectors, or empty. vectors: float32 [rows, dimensions], of length 1."""

    space: str
    ids: list[Any]
    vectors: Vectors


@dataclass(frozen=True)
class Comparison:
    """Cosines between the two vectors of each row; None if their dimensions differ. nearest: the part of a row's ten
    nearest rows that both find. mixed: the part that is found if the query is of A and the rows are of B; None if the
    dimensions differ."""

    rows: int
    cosines: Vectors | None
    nearest: float
    mixed: float | None


def compare_spaces(
    a: Annotated[str, typer.Argument(metavar="A", help="An output of bulk, as Parquet; also s3:// and gs://.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another one, of the same rows.")],
    id_column: Annotated[str, typer.Option("--id-column", help="Column that names rows in both.")] = "id",
    rows: Annotated[int, typer.Option("--rows", min=2 * NEAREST, help="Rows of the sample.")] = 2000,
) -> None:
    """Show how far two embedding spaces are apart: cosines, and how many of the ten nearest rows they share."""
    from tritonembed_bulk.starting import refusals

    with failures(), refusals():
        first = read_sample(a, id_column, rows)
        second = read_sample(b, id_column, rows, first.ids)
        found = compare(first, second)
    typer.echo(f"spaces   {first.space or '-'}  {second.space or '-'}")
    typer.echo(f"rows     {found.rows}, with {first.vectors.shape[1]} and {second.vectors.shape[1]} dimensions")
    if found.cosines is not None:
        least, low, middle = np.quantile(found.cosines, (0, 0.01, 0.5))
        typer.echo(f"cosine   median {middle:.6f}, 1 % below {low:.6f}, lowest {least:.6f}")
    typer.echo(f"nearest  {found.nearest:.4f} of the {NEAREST} nearest rows are the same")
    if found.mixed is not None:
        typer.echo(f"mixed    {found.mixed:.4f} of them are found with queries of the first and rows of the second")


def read_sample(location: str, id_column: str, rows: int, wanted: Sequence[Any] = ()) -> Sample:
    """Rows of an output: the wanted ones, in their order, or the first ones of each part. Raises UsageError."""
    import pyarrow.dataset as ds

    from tritonembed_bulk.store import locate

    found, path = locate(location)
    try:
        dataset = ds.dataset(path, filesystem=found, format="parquet")
    except FileNotFoundError:
        raise UsageError("compare-spaces: one of the outputs does not exist") from None
    lacking = [name for name in (id_column, "embedding") if name not in dataset.schema.names]
    if lacking:
        raise UsageError(f"compare-spaces: an output has no column {lacking[0]!r}")
    if wanted:
        table = dataset.to_table([id_column, "embedding"], filter=ds.field(id_column).isin(list(wanted)))
    else:
        table = _first_rows(dataset, [id_column, "embedding"], rows)
    metadata = dataset.schema.metadata or {}
    kind = metadata.get(b"tritonembed.embedding_type", b"float").decode()
    ids = table[id_column].to_pylist()
    vectors = _vectors(table, kind)
    if wanted:
        places = {one: place for place, one in enumerate(ids)}
        if len(places) != len(ids) or places.keys() != set(wanted):
            raise UsageError(
                f"compare-spaces: {len(set(wanted) - places.keys())} rows of A are not in B, or ids repeat"
            )
        vectors, ids = vectors[[places[one] for one in wanted]], list(wanted)
    if len(set(ids)) != len(ids) or len(ids) < 2 * NEAREST:
        raise UsageError(f"compare-spaces: the sample needs {2 * NEAREST} rows or more, each with an id of its own")
    return Sample(metadata.get(b"tritonembed.embedding_space", b"").decode(), ids, vectors)


def _first_rows(dataset: Any, columns: list[str], rows: int) -> pa.Table:
    """The first rows of each part, as many as are needed: the sample is of the whole output."""
    import pyarrow as pa

    fragments = list(dataset.get_fragments())
    each = -(-rows // max(len(fragments), 1))
    return pa.concat_tables([part.head(each, columns=columns) for part in fragments[:rows]])


def _vectors(table: pa.Table, kind: str) -> Vectors:
    column = table["embedding"].combine_chunks()
    stored = column.flatten().to_numpy().reshape(len(column), column.type.list_size)
    if kind in ("binary", "ubinary"):
        bits = np.unpackbits((stored.astype(np.int16) + (128 if kind == "binary" else 0)).astype(np.uint8), axis=1)
        values = 2.0 * bits - 1
    else:
        values = stored.astype(np.float32) - (128 if kind == "uint8" else 0)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    unit: Vectors = (values / np.maximum(lengths, 1e-12)).astype(np.float32)
    return unit


def compare(a: Sample, b: Sample) -> Comparison:
    """Compare two samples of the same rows, in the same order."""
    own, other = nearest(a.vectors, a.vectors), nearest(b.vectors, b.vectors)
    if a.vectors.shape != b.vectors.shape:
        return Comparison(len(a.ids), None, shared(own, other), None)
    cosines: Vectors = np.einsum("ij,ij->i", a.vectors, b.vectors)
    return Comparison(len(a.ids), cosines, shared(own, other), shared(own, nearest(a.vectors, b.vectors)))


def nearest(queries: Vectors, rows: Vectors) -> npt.NDArray[np.intp]:
    """The ten rows with the largest cosines to each query, without its own row: [queries, 10], in no order."""
    found = []
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        cosines = queries[start : start + QUERIES_AT_ONCE] @ rows.T
        cosines[np.arange(len(cosines)), np.arange(start, start + len(cosines))] = -np.inf
        found.append(np.argpartition(-cosines, NEAREST, axis=1)[:, :NEAREST])
    return np.concatenate(found)


def shared(first: npt.NDArray[np.intp], second: npt.NDArray[np.intp]) -> float:
    """The part of the first's entries that the second has in the same row."""
    return float(np.mean([len(np.intersect1d(*pair)) / NEAREST for pair in zip(first, second, strict=True)]))
