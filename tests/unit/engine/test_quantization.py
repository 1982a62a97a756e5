"""int8 keeps the nearest of texts, or says that it does not: the formulas and the search, without a runtime."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tritonembed_engine.errors import ModelError
from tritonembed_engine.quantization import (
    FEWEST_TEXTS,
    calibration_texts,
    choose,
    overlap,
    quantize,
    smoothing_factors,
)

RNG = np.random.default_rng(3)


def test_weights_return_within_half_a_step_of_their_group() -> None:
    weights = RNG.normal(size=(6, 64)).astype(np.float32)
    weights[2, :32] = 0
    weights[3, 40] = 50
    integers, scales = quantize(weights, 32)
    assert (integers.shape, integers.dtype, scales.shape) == ((6, 2, 32), np.int8, (6, 2, 1))
    restored = (integers * scales).reshape(weights.shape)
    steps = np.repeat(np.abs(weights.reshape(6, 2, 32)).max(axis=2) / 127, 32, axis=1)
    assert (np.abs(restored - weights) <= steps * 0.5001).all()
    # The outlier of one group does not coarsen the other.
    assert np.abs(restored - weights)[3, :32].max() < 0.02
    assert not restored[2, :32].any()


def test_smoothing_moves_outliers_of_activations_into_the_weights() -> None:
    activations = np.array([100.0, 1.0, 1.0, 0.0], np.float32)
    first, second = (RNG.uniform(0.5, 1, size=(8, 4)).astype(np.float32) for _ in range(2))
    factors = smoothing_factors(activations, [first, second])
    # SmoothQuant's formula at 0.5, up to a common factor.
    largest = np.abs(np.concatenate([first, second])).max(axis=0)
    expected = np.sqrt(activations[:3] / largest[:3])
    np.testing.assert_allclose(factors[:3] / factors[1], expected / expected[1], rtol=1e-5)
    assert np.exp(np.log(factors).mean()) == pytest.approx(1, rel=1e-5)
    assert (activations / factors).max() / np.median((activations / factors)[:3]) < 20


def test_overlap_counts_the_ten_nearest_that_both_have() -> None:
    angles = np.arange(24) * 0.01
    line = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert overlap(line * 3, line) == 1
    # Two texts change places: the first has now other neighbours than before, and most texts have the same ones.
    swapped = line.copy()
    swapped[[0, 23]] = line[[23, 0]]
    expected = []
    for row in range(24):
        nearest = [set(np.argsort(-(vectors @ vectors[row]))[:11].tolist()) - {row} for vectors in (swapped, line)]
        expected.append(len(set.intersection(*nearest)) / 10)
    assert overlap(swapped, line) == pytest.approx(np.mean(expected))
    assert overlap(swapped, line) < 0.95


SIZES = {"a": 10, "b": 10, "c": 10, "large": 50}
ERRORS = {"a": 1.0, "b": 30.0, "c": 2.0, "large": 20.0}


def quality_of(names: Sequence[str]) -> float:
    return 1 - sum(ERRORS[name] for name in names) / 1000


def test_nothing_is_left_out_if_all_products_reach_the_quality() -> None:
    def unused(name: str) -> float:
        raise AssertionError(name)

    chosen = choose(SIZES, unused, quality_of, 0.94)
    assert (chosen.quantized, chosen.kept) == (tuple(SIZES), ())
    assert chosen.quality == pytest.approx(0.947)


def test_products_that_cost_most_for_their_size_stay_unquantized_until_the_quality_is_reached() -> None:
    chosen = choose(SIZES, ERRORS.__getitem__, quality_of, 0.97)
    assert (chosen.kept, chosen.quantized) == (("b",), ("a", "c", "large"))
    assert chosen.quality == pytest.approx(0.977)
    # The large product counts less for its size than `b`, and more than `c`.
    assert choose(SIZES, ERRORS.__getitem__, quality_of, 0.978).kept == ("b", "large")


def test_a_quality_that_too_few_products_reach_is_one_line() -> None:
    with pytest.raises(ModelError, match=r"^int8 keeps 0\.980 of the ten nearest .*, below 0\.99 \(--quantization-q"):
        choose({**SIZES, "large": 500}, ERRORS.__getitem__, quality_of, 0.99)


def test_calibration_texts_are_a_file_or_the_projects_own(tmp_path: Path) -> None:
    assert len(calibration_texts(None)) >= 300
    file = tmp_path / "texts"
    lines = [f"text {number}" for number in range(FEWEST_TEXTS)]
    file.write_text("\n\n".join([*lines, "text 0", "  "]))
    assert calibration_texts(str(file)) == lines
    file.write_text("\n".join(lines[1:] + lines[1:]))
    with pytest.raises(ModelError, match=rf"^{FEWEST_TEXTS - 1} calibration texts, at least {FEWEST_TEXTS} are needed"):
        calibration_texts(str(file))
    file.write_bytes(b"\xff" * 900)
    for wrong in (str(file), str(tmp_path / "none"), str(tmp_path)):
        with pytest.raises(ModelError, match=r"^the calibration texts can't be read: a file of UTF-8") as failed:
            calibration_texts(wrong)
        assert str(tmp_path) not in str(failed.value)
