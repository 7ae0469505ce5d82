"""Scales of weights, and that no two neighbours overflow 16 bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamd.models.weights import Int8Weights, nearest, safe_scales, unsigned_peaks, weight_scales

rng = np.random.default_rng


def largest_sum(made: Int8Weights, unsigned: np.ndarray) -> int:
    """The largest magnitude that two neighbouring products can add up to."""
    steps = made.steps.astype(np.int64)
    steps = np.pad(steps, ((0, 0), (0, steps.shape[1] % 2), (0, 0), (0, 0)))
    products = steps * np.pad(unsigned, (0, len(unsigned) % 2))[None, :, None, None]
    pairs = products.reshape(len(steps), -1, 2, *steps.shape[2:])
    return int(max(np.maximum(pairs, 0).sum(axis=2).max(), np.maximum(-pairs, 0).sum(axis=2).max()))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 30), channels=st.integers(2, 9), spread=st.floats(0, 3))
def test_neighbours_never_overflow(seed: int, channels: int, spread: float) -> None:
    random = rng(seed)
    weight = (random.standard_normal((6, channels, 3, 3)) * np.exp(random.normal(0, spread, (6, 1, 1, 1)))).astype("f4")
    unsigned = random.integers(128, 256, channels)
    scales = safe_scales(weight, unsigned)
    assert (scales >= weight_scales(weight)).all()
    assert largest_sum(nearest(weight, scales), unsigned) <= 32767


def test_equal_neighbours_overflow_without_it_and_lone_ones_cost_nothing() -> None:
    equal = np.ones((1, 2, 1, 1), np.float32)
    unsigned = np.array([255, 255])
    assert largest_sum(nearest(equal, weight_scales(equal)), unsigned) == 2 * 127 * 255 > 32767
    # Half of 128 is what two of them can have each.
    assert nearest(equal, safe_scales(equal, unsigned)).steps.max() == 64
    lone = np.array([1, 0, -1, 0], np.float32).reshape(1, 4, 1, 1)
    assert safe_scales(lone, np.full(4, 255)) == pytest.approx(weight_scales(lone))
    opposite = np.array([1, -1], np.float32).reshape(1, 2, 1, 1)
    assert safe_scales(opposite, unsigned) == pytest.approx(weight_scales(opposite))
    single = np.ones((2, 1, 3, 3), np.float32)
    assert safe_scales(single, np.array([255])) == pytest.approx(weight_scales(single))


def test_peaks_become_unsigned_with_room_to_spare() -> None:
    peaks = np.array([-1.0, 0.0, 1.0, 4.0, 100.0], np.float32)
    assert unsigned_peaks(peaks, 12.7).tolist() == [128, 128, 141, 178, 255]


def test_weight_scales_take_each_channel_s_peak() -> None:
    w = np.zeros((3, 2, 1, 1), np.float32)
    w[0], w[1] = 127, 0.254
    assert weight_scales(w)[:2] == pytest.approx([1.0, 0.002])
    assert weight_scales(w)[2] > 0


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 30), power=st.integers(-30, 30))
def test_values_on_the_grid_are_rounded_to_the_same_steps_again(seed: int, power: int) -> None:
    weight = (rng(seed).standard_normal((4, 3, 3, 3)) * 2.0**power).astype(np.float32)
    made = nearest(weight, weight_scales(weight))
    assert (nearest(made.values(), made.scales).steps == made.steps).all()
