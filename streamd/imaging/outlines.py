"""From the masks of instances to their outlines."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from streamd.types import Float32Array

MOST_POINTS = 64
"""Points of an outline at most: bounds a message."""
COARSEST = 0.02
"""Share of a mask's longer side by which an outline may be simplified; what needs more gets its convex hull."""
_NOTHING = np.empty((0, 2), np.float32)


def binary_mask(
    logits: Float32Array, factor: int, box: tuple[float, float, float, float]
) -> tuple[npt.NDArray[np.uint8], int, int]:
    """Where an enlarged mask is positive, inside a box.

    Args:
        logits: (h, w) above 0 inside the object. Covers the box and a value around it, where the whole mask has one.
        factor: pixels a value of the mask, in both directions; between values it is interpolated.
        box: x1, y1, x2, y2 in pixels from the corner of `logits`: a pixel counts whose corner is in it.

    Returns:
        (mask (H, W) of 0 and 1, x, y): of the pixels of the box, and where its corner is, from that of `logits`.
    """
    import cv2

    height, width = logits.shape
    x1, y1, x2, y2 = (math.ceil(max(0.0, v)) for v in box)
    if factor > 1:
        size = (width * factor, height * factor)
        logits = cv2.resize(np.ascontiguousarray(logits), size, interpolation=cv2.INTER_LINEAR)
    return (logits[y1:y2, x1:x2] > 0).astype(np.uint8), x1, y1


def outline(mask: npt.NDArray[np.uint8]) -> Float32Array:
    """The outline of the largest region of a mask, without holes.

    Args:
        mask: (H, W) of 0 and 1.

    Returns:
        (V, 2) pixels, `MOST_POINTS` at most, within a pixel of the exact outline where that many suffice; of very
        ragged masks the convex hull; (0, 2) for an empty mask.
    """
    import cv2

    if not mask.any():
        return _NOTHING
    found = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]
    contour = max(found, key=cv2.contourArea)
    tolerance, coarsest = 0.5, max(4.0, COARSEST * max(mask.shape))
    simple = cv2.approxPolyDP(contour, tolerance, True)
    while len(simple) > MOST_POINTS:
        tolerance *= 1.5
        if tolerance > coarsest:
            # Simplified further, a comb would become a line. Its convex hull is simple.
            contour, tolerance, coarsest = cv2.convexHull(contour), 0.5, math.inf
        simple = cv2.approxPolyDP(contour, tolerance, True)
    # Contours run through the middles of pixels.
    points: Float32Array = simple.reshape(-1, 2).astype(np.float32) + np.float32(0.5)
    return points
