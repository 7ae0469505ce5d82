"""Histograms and thresholds."""

from __future__ import annotations

import numpy as np
import pytest

from streamd.errors import ConfigError
from streamd.models.calibrate import BINS, METHODS, Histogram, Observer, observe, threshold, thresholds
from tests.models.nets import branches


def filled(*values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Histogram:
    out = Histogram()
    for v in values:
        out.add(v)
    return out


def normal(count: int = 200_000, seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(seed).normal(0, 1, count).astype(np.float32)


def test_every_value_is_counted_once_whatever_the_batches() -> None:
    values = np.concatenate([normal(50_000) * 0.01, normal(50_000, 1) * 30, np.zeros(77, np.float32)])
    whole = filled(values)
    parts = filled(*np.split(values, [10, 40_000, 90_000]))
    assert np.array_equal(whole.counts, parts.counts)
    assert (whole.exponent, whole.peak, whole.zeros) == (parts.exponent, parts.peak, parts.zeros)
    assert int(whole.counts.sum()) + whole.zeros == values.size


def test_a_larger_value_doubles_the_range_and_keeps_the_counts_where_they_belong() -> None:
    h = filled(np.array([0.9], np.float32), np.array([100.0], np.float32))
    (low, high) = np.flatnonzero(h.counts)
    assert low * h.width <= 0.9 < (low + 1) * h.width
    assert high * h.width <= 100 < (high + 1) * h.width


@pytest.mark.parametrize("value", [1.0, 2.0, 0.5, np.nextafter(np.float32(1), np.float32(0))])
def test_powers_of_two_fit(value: float) -> None:
    assert int(filled(np.array([value, -value], np.float32)).counts.sum()) == 2


def test_merging_is_counting_together() -> None:
    a, b = normal(4000) * 3, normal(4000, 1) * 200
    assert np.array_equal(filled(a).merged([filled(b)]).counts, filled(a, b).counts)


def test_json_keeps_everything() -> None:
    h = filled(normal(1000), np.zeros(5, np.float32))
    back = Histogram.from_json(h.as_json())
    assert np.array_equal(h.counts, back.counts)
    assert (h.exponent, h.peak, h.zeros) == (back.exponent, back.peak, back.zeros)
    assert len(h.as_json()["counts"]) <= BINS


def test_infinities_are_refused() -> None:
    with pytest.raises(ConfigError, match="infinities"):
        Histogram().add(np.array([1.0, np.inf], np.float32))
    with pytest.raises(ConfigError, match="infinities"):
        Histogram().add(np.array([1.0, np.nan], np.float32))


def error_at(values: np.ndarray[tuple[int, ...], np.dtype[np.float32]], limit: float) -> float:
    scale = limit / 127
    return float(np.mean((np.clip(np.rint(values / scale), -127, 127) * scale - values) ** 2))


def test_minmax_is_the_peak_and_percentile_cuts_the_tail() -> None:
    values = np.concatenate([normal(), np.array([50.0], np.float32)])
    h = filled(values)
    assert threshold(h, "minmax") == 50.0
    assert threshold(h, "percentile") == pytest.approx(float(np.percentile(np.abs(values), 99.99)), rel=0.02)


def test_mse_is_within_a_hair_of_the_best_of_all_thresholds() -> None:
    values = np.concatenate([normal(), normal(200, 1) * 8])
    found = threshold(filled(values), "mse")
    best = min(error_at(values, float(np.abs(values).max()) * k / 400) for k in range(20, 401))
    assert error_at(values, found) <= best * 1.05
    assert error_at(values, found) < error_at(values, float(np.abs(values).max())) * 0.8


def test_entropy_cuts_a_far_outlier_but_keeps_the_body() -> None:
    values = np.concatenate([normal(), np.array([40.0], np.float32)])
    assert 2.0 < threshold(filled(values), "entropy") < 20.0


@pytest.mark.parametrize("method", METHODS)
def test_no_threshold_is_beyond_the_peak(method: str) -> None:
    for values in (normal(100), np.ones(10, np.float32), np.array([1e-30], np.float32), normal() * 1e4):
        h = filled(values)
        assert 0 < threshold(h, method) <= h.peak  # type: ignore[arg-type]
    assert threshold(filled(np.zeros(4, np.float32)), method) == 0.0  # type: ignore[arg-type]


def test_a_group_has_one_threshold_for_all_its_values() -> None:
    found = thresholds({"a": filled(normal(10) * 0 + 1), "b": filled(normal(10) * 0 + 9)}, {0: ("a", "b")}, "minmax")
    assert found == {"a": 9.0}


def test_the_picture_itself_may_be_all_that_is_observed() -> None:
    """As in a model with one layer to quantize, which reads the picture."""
    picture = np.random.default_rng(3).random((1, 3, 64, 64), np.float32)
    histograms, peaks = observe(Observer(branches(), ["images"]), [picture], channels=["images"])
    assert histograms["images"].counts.sum() == picture.size
    assert peaks["images"] == pytest.approx(picture.max(axis=(0, 2, 3)))
