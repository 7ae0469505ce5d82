"""What the camera's own motion does to all tracks of a picture, estimated from the tracks themselves.

A shaking or turning camera moves every box by nearly the same. No pixels are looked at: the displacement is the
median, over the tracks that were just matched, of how far their boxes are from where they were expected.
"""

from __future__ import annotations

from collections.abc import Sequence

FEWEST = 4
"""Tracks that it takes to tell the camera's motion from an object's; the caller sees to it."""


def common_shift(x: Sequence[float], y: Sequence[float], least: float) -> tuple[float, float]:
    """How far all boxes of a picture are from where they were expected: the median, where most agree with it.

    In Python's own floats: sorting a few dozen numbers costs less than one array operation.

    Args:
        x: boxes minus predictions, to the right, in pixels.
        y: the same, down.
        least: a smaller displacement is none.

    Returns:
        Right and down in pixels; zeros where the median absolute deviation is above the displacement in both
        directions, or where there is nothing to speak of.
    """
    right, down = _median(sorted(x)), _median(sorted(y))
    if abs(right) < least and abs(down) < least:
        return 0.0, 0.0
    agreed = abs(right) > _spread(x, right) or abs(down) > _spread(y, down)
    return (right, down) if agreed else (0.0, 0.0)


def _median(ordered: Sequence[float]) -> float:
    n = len(ordered)
    return (ordered[n // 2] + ordered[(n - 1) // 2]) / 2


def _spread(values: Sequence[float], center: float) -> float:
    return _median(sorted([abs(value - center) for value in values]))
