"""Distinguishing a gain from noise."""

import pytest

from tritonembed_manager.tune.trials import LEAST_GAIN, LEAST_SCATTER, compare, scatter


def test_scatter_is_within_groups_not_between_them():
    assert scatter([[100, 100, 100], [300, 300]]) == LEAST_SCATTER
    assert scatter([[90, 110], [900, 1100]]) == pytest.approx(0.1419, abs=1e-3)


def test_single_runs_give_the_least_scatter():
    assert scatter([[100], [200]]) == LEAST_SCATTER


def test_more_runs_detect_smaller_gains():
    few = compare({"a": [108] * 3}, {"a": [100] * 3}, sigma=0.05)
    many = compare({"a": [108] * 12}, {"a": [100] * 12}, sigma=0.05)
    assert few.gain == many.gain == pytest.approx(0.08)
    assert not few.is_gain
    assert few.is_promising
    assert many.is_gain


def test_a_gain_far_beyond_noise_is_clear():
    assert compare({"a": [200] * 3}, {"a": [100] * 3}, sigma=0.05).is_clear


def test_a_gain_too_small_to_matter_is_no_gain_however_certain():
    found = compare({"a": [101] * 1000}, {"a": [100] * 1000}, sigma=0.005)
    assert found.needed == LEAST_GAIN
    assert not found.is_gain
    assert not found.is_promising


def test_loads_have_equal_weight_whatever_their_rates():
    found = compare({"a": [2e6], "b": [1.0]}, {"a": [1e6], "b": [2.0]}, sigma=0.01)
    assert found.gain == pytest.approx(0)


def test_the_median_counts_not_an_outlier():
    assert compare({"a": [100, 101, 900]}, {"a": [100, 101, 99]}, sigma=0.01).gain == pytest.approx(0.01)


def test_runs_without_a_common_load_cannot_be_compared():
    with pytest.raises(ValueError, match="nothing"):
        compare({"a": [1]}, {"b": [1]}, sigma=0.01)
