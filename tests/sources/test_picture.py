"""Orientation and shape of pictures as containers, SEI and Exif declare them."""

from __future__ import annotations

import math
import struct
from fractions import Fraction

import pytest

from streamd.sources.picture import aspect_of, orientation

ONE = 1 << 16


def matrix(a: float, b: float, c: float, d: float) -> bytes:
    return struct.pack("=9i", *(round(v * ONE) for v in (a, b, 0, c, d, 0, 300, 200)), 1 << 30)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ((1, 0, 0, 1), (0, False)),
        ((-1, 0, 0, 1), (0, True)),
        ((-1, 0, 0, -1), (180, False)),
        ((1, 0, 0, -1), (180, True)),
        ((0, 1, 1, 0), (90, True)),
        ((0, 1, -1, 0), (90, False)),
        ((0, -1, -1, 0), (270, True)),
        ((0, -1, 1, 0), (270, False)),
        # scaled, and between quarter turns
        ((2, 0, 0, 0.5), (0, False)),
        ((math.cos(0.3), math.sin(0.3), -math.sin(0.3), math.cos(0.3)), (0, False)),
        ((math.cos(1.4), math.sin(1.4), -math.sin(1.4), math.cos(1.4)), (90, False)),
        # sheared: the nearest
        ((0.1, 0, 5, 0.1), (270, False)),
        ((0.1, 0, -5, 0.1), (90, False)),
        ((0.1, 5, 0, 0.1), (90, False)),
        ((-5, 0.1, 0.1, 0), (180, False)),
        # what maps the picture to nothing
        ((0, 0, 0, 0), (0, False)),
        ((1, 0, 0, 0), (0, False)),
        ((1, 1, 1, 1), (0, False)),
    ],
)
def test_a_display_matrix(values: tuple[float, float, float, float], found: tuple[int, bool]) -> None:
    """(x, y) goes to (a·x + c·y, b·x + d·y), y downwards; a quarter turn to the right takes x to y and y to -x."""
    assert orientation(matrix(*values)) == found


def test_a_matrix_that_is_cut_off() -> None:
    assert orientation(b"\x00\x01") == (0, False)


@pytest.mark.parametrize(
    ("ratio", "aspect"),
    [(None, 1), (Fraction(0), 1), (Fraction(16, 11), 16 / 11), (Fraction(9999), 1), (Fraction(2), 2)],
)
def test_pixel_aspects(ratio: Fraction | None, aspect: float) -> None:
    assert aspect_of(ratio) == aspect
