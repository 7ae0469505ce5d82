"""The camera's own motion, estimated from the tracks of a picture.

A shaking or turning camera moves all boxes by nearly the same distance. No pixels are used: the displacement is the
median, over the tracks that were just matched, of the distance between their boxes and the predictions.
"""

from __future__ import annotations

from collections.abc import Sequence

FEWEST = 4
"""Number of tracks needed to tell the camera's motion from an object's; the caller checks it."""


def common_shift(x: Sequence[float], y: Sequence[float], least: float) -> tuple[float, float]:
    """The displacement of all boxes of a picture from their predictions: the median, if most agree with it.

    Uses Python floats: sorting a few dozen numbers costs less than one array operation.

    Args:
        x: boxes minus predictions, to the right, in pixels.
        y: the same, down.
        least: a smaller displacement counts as none.

    Returns:
        Right and down in pixels; zeros if the median absolute deviation exceeds the displacement in both directions, or
        if the displacement is too small.
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
