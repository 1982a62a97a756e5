"""How far two spaces are apart, against formulas of numpy."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tritonembed.cli.app import app
from tritonembed.cli.failures import UsageError
from tritonembed_bulk.spaces import NEAREST, compare, read_sample

ROWS, DIMENSIONS = 64, 16


def write(folder, vectors, kind="float", ids=None):
    """Two parts, the second of fewer rows."""
    folder.mkdir()
    ids = np.arange(len(vectors)) if ids is None else ids
    metadata = {"tritonembed.embedding_space": f"space-{kind}", "tritonembed.embedding_type": kind}
    for name, part in (("b", slice(0, 40)), ("a", slice(40, None))):
        values = pa.array(np.ascontiguousarray(vectors[part]).reshape(-1))
        column = pa.FixedSizeListArray.from_arrays(values, vectors.shape[1])
        table = pa.table({"id": ids[part], "embedding": column}).replace_schema_metadata(metadata)
        pq.write_table(table, folder / f"{name}.parquet")
    return folder


@pytest.fixture
def vectors():
    drawn = np.random.default_rng(1).standard_normal((ROWS, DIMENSIONS)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def samples(a, b):
    first = read_sample(str(a), "id", 2 * ROWS)
    return first, read_sample(str(b), "id", 2 * ROWS, first.ids)


def test_the_same_vectors_in_another_order_are_equal(tmp_path, vectors):
    order = np.random.default_rng(2).permutation(ROWS)
    found = compare(*samples(write(tmp_path / "a", vectors), write(tmp_path / "b", vectors[order], ids=order)))
    assert found.rows == ROWS
    assert found.cosines.min() > 0.999999
    assert (found.nearest, found.mixed) == (1, 1)


def test_a_turned_space_has_the_same_neighbours_and_cant_be_mixed(tmp_path, vectors):
    turn = np.linalg.qr(np.random.default_rng(3).standard_normal((DIMENSIONS, DIMENSIONS)))[0].astype(np.float32)
    found = compare(*samples(write(tmp_path / "a", vectors), write(tmp_path / "b", vectors @ turn)))
    assert found.nearest == 1
    assert found.mixed < 0.5
    ids = read_sample(str(tmp_path / "a"), "id", 2 * ROWS).ids
    assert np.allclose(found.cosines, ((vectors @ turn) * vectors).sum(axis=1)[ids], atol=1e-5)


def test_the_overlap_is_that_of_a_full_sort(tmp_path, vectors):
    noisy = vectors + 0.1 * np.random.default_rng(4).standard_normal(vectors.shape).astype(np.float32)
    found = compare(*samples(write(tmp_path / "a", vectors), write(tmp_path / "b", noisy)))
    unit = noisy / np.linalg.norm(noisy, axis=1, keepdims=True)

    def ten(queries, rows):
        cosines = queries @ rows.T
        np.fill_diagonal(cosines, -2)
        return [set(row) for row in np.argsort(-cosines, axis=1)[:, :NEAREST].tolist()]

    own, other, mixed = ten(vectors, vectors), ten(unit, unit), ten(vectors, unit)
    assert found.nearest == pytest.approx(np.mean([len(x & y) for x, y in zip(own, other, strict=True)]) / NEAREST)
    assert found.mixed == pytest.approx(np.mean([len(x & y) for x, y in zip(own, mixed, strict=True)]) / NEAREST)
    assert 0.3 < found.mixed < 1


@pytest.mark.parametrize(
    ("kind", "encode", "least"),
    [
        ("int8", lambda v: np.rint(127 * v).astype(np.int8), 0.999),
        ("uint8", lambda v: (np.rint(127 * v) + 128).astype(np.uint8), 0.999),
        ("float16", lambda v: v.astype(np.float16), 0.99999),
        ("ubinary", lambda v: np.packbits(v > 0, axis=1), 0.5),
        ("binary", lambda v: (np.packbits(v > 0, axis=1).astype(np.int16) - 128).astype(np.int8), 0.5),
    ],
)
def test_other_types_are_read_back(tmp_path, vectors, kind, encode, least):
    found = compare(*samples(write(tmp_path / "a", vectors), write(tmp_path / "b", encode(vectors), kind)))
    assert found.cosines.min() > least


def test_other_dimensions_have_neighbours_and_no_cosines(tmp_path, vectors):
    found = compare(*samples(write(tmp_path / "a", vectors), write(tmp_path / "b", vectors[:, :8])))
    assert found.cosines is None
    assert found.mixed is None
    assert 0 < found.nearest < 1


def test_the_command_shows_spaces_and_figures(tmp_path, vectors):
    folders = [str(write(tmp_path / "a", vectors)), str(write(tmp_path / "b", vectors))]
    result = CliRunner().invoke(app, ["compare-spaces", *folders])
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "spaces   space-float  space-float",
        f"rows     {ROWS}, with 16 and 16 dimensions",
        "cosine   median 1.000000, 1 % below 1.000000, lowest 1.000000",
        "nearest  1.0000 of the 10 nearest rows are the same",
        "mixed    1.0000 of them are found with queries of the first and rows of the second",
    ]


def test_rows_that_do_not_fit_are_refused(tmp_path, vectors):
    write(tmp_path / "a", vectors)
    write(tmp_path / "b", vectors, ids=np.arange(1, ROWS + 1))
    with pytest.raises(UsageError, match="1 rows of A are not in B"):
        samples(tmp_path / "a", tmp_path / "b")
    with pytest.raises(UsageError, match="no column 'key'"):
        read_sample(str(tmp_path / "a"), "key", ROWS)
    with pytest.raises(UsageError, match="does not exist"):
        read_sample(str(tmp_path / "c"), "id", ROWS)
