"""From masks to outlines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from streamd.imaging.outlines import MOST_POINTS, binary_mask, outline


def drawn(points: Any, shape: tuple[int, int]) -> Any:
    import cv2

    out = np.zeros(shape, np.uint8)
    cv2.fillPoly(out, [np.rint(points - 0.5).astype(np.int32)], 1)
    return out


@pytest.mark.parametrize("radius", [4, 20, 90])
def test_a_disc_is_drawn_again_within_a_pixel(radius: int) -> None:
    y, x = np.indices((200, 220)) + 0.5
    distance = np.hypot(x - 110, y - 100)
    points = outline((distance < radius).astype(np.uint8))
    assert len(points) <= MOST_POINTS
    again = drawn(points, (200, 220))
    assert again[distance < radius - 1].all()
    assert not again[distance > radius + 1].any()


def test_the_largest_region_without_its_holes() -> None:
    mask = np.zeros((60, 80), np.uint8)
    mask[10:40, 10:50], mask[20:25, 20:25], mask[50:55, 60:70] = 1, 0, 1
    assert sorted(outline(mask).tolist()) == [[10.5, 10.5], [10.5, 39.5], [49.5, 10.5], [49.5, 39.5]]
    assert outline(np.zeros((5, 5), np.uint8)).shape == (0, 2)
    assert outline(np.zeros((0, 0), np.uint8)).shape == (0, 2)


def test_however_ragged_a_mask_its_outline_is_bounded() -> None:
    mask = np.ones((400, 400), np.uint8)
    mask[:-1, 1::2] = 0  # a comb
    assert sorted(outline(mask).tolist()) == [[0.5, 0.5], [0.5, 399.5], [398.5, 0.5], [399.5, 399.5]]
    noise = np.random.default_rng(0).integers(0, 2, (300, 300)).astype(np.uint8)
    points = outline(np.maximum(noise, np.indices((300, 300))[0] % 5 == 0).astype(np.uint8))
    assert 3 <= len(points) <= MOST_POINTS
    assert np.ptp(points, axis=0).min() > 290


def test_a_mask_is_enlarged_between_its_values_and_cut_at_its_box() -> None:
    logits = np.array([[-1, -1, 1, 1]] * 4, np.float32)
    mask, x, y = binary_mask(logits, 4, (2.0, 3.5, 16.0, 12.0))
    # Halfway between the middles of the second and the third value, at 8 pixels, the sign changes.
    assert (mask.shape, x, y) == ((8, 14), 2, 4)
    assert mask[:, : 8 - 2].sum() == 0
    assert mask[:, 8 - 2 :].all()
    mask, x, y = binary_mask(logits, 1, (-3.0, -3.0, 99.0, 99.0))
    assert (mask.tolist(), x, y) == ([[0, 0, 1, 1]] * 4, 0, 0)
