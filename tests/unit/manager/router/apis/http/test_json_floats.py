"""Vectors as JSON: every float32 comes back bit for bit."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays

from tritonembed_manager.router.apis.http.tensor_json import json_rows


def check(vectors):
    rows = json_rows(vectors)
    assert len(rows) == len(vectors)
    back = np.array([json.loads(row) for row in rows], np.float64)
    with np.errstate(under="ignore"):
        assert back.astype("<f4").tobytes() == vectors.tobytes()


@given(
    arrays(
        "<f4", array_shapes(min_dims=2, max_dims=2, max_side=7), elements={"allow_nan": False, "allow_infinity": False}
    )
)
def test_any_matrix(vectors):
    check(vectors)


def test_numbers_of_every_exponent():
    bits = np.random.default_rng(0).integers(0, 2**32, size=(50, 3000), dtype=np.uint32).view("<f4")
    check(np.where(np.isfinite(bits), bits, np.float32(1)))


def test_numbers_next_to_every_power_of_ten():
    with np.errstate(over="ignore", under="ignore"):
        powers = np.array([np.float32(10.0**power) for power in range(-45, 39)])
    beside = np.stack([powers, np.nextafter(powers, np.float32(0)), np.nextafter(powers, np.float32(np.inf))])
    check(beside)
    check(-beside)


@pytest.mark.parametrize("shape", [(1, 1), (3, 768), (2, 8192), (2, 8193), (20, 1000)])
def test_matrices_of_any_size_and_layout(shape):
    check(np.random.default_rng(0).standard_normal(shape).astype("<f4"))
    check(np.random.default_rng(0).standard_normal((shape[0], 2 * shape[1])).astype("<f4")[:, ::2])


def test_zero_and_the_extremes():
    limits = np.finfo(np.float32)
    check(np.array([[0.0, -0.0, 1, -1, 0.1, limits.max, limits.min, limits.tiny, 1e-45, -1e-45, 9.9999999]], "<f4"))


def test_numbers_are_rounded_to_nine_digits():
    numbers = np.random.default_rng(1).standard_normal(5000).astype("<f4")
    [row] = json_rows(numbers[None])
    assert row.decode().strip("[]").replace(" ", "").split(",") == [f"{number:.8e}" for number in numbers]
