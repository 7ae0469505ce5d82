"""Points, polygons and lines in pixels, for all tracks of a frame at once."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from streamd.analysis.rules.settings import Anchor, Point
from streamd.types import Float32Array

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]
Rows = npt.NDArray[np.void]

ANCHOR_HEIGHT: dict[Anchor, float] = {"top_center": 0.0, "center": 0.5, "bottom_center": 1.0}
"""Vertical position of the anchor in the box, from its top (0) to its bottom (1); horizontally it is always in the
middle."""
EDGES: dict[Anchor, tuple[int, ...]] = {"top_center": (0, 1, 2), "center": (0, 1, 2, 3), "bottom_center": (0, 2, 3)}
"""Columns of x1, y1, x2, y2 that shift the anchor if the edge of the picture cuts them."""
TOUCH = 0.003
"""A box this near to the edge of the picture (as a fraction of its width or height) counts as cut by it."""


class Boxes:
    """The boxes of a frame, and values derived from them.

    Args:
        xyxy: (N, 4) float32 pixels.
    """

    __slots__ = ("sizes", "sums", "xyxy")

    def __init__(self, xyxy: Float32Array) -> None:
        self.xyxy: Array = xyxy.astype(np.float64)
        first, second = self.xyxy[:, :2], self.xyxy[:, 2:]
        self.sums: Array = first + second
        """(N, 2) twice the centre."""
        self.sizes: Array = second - first
        """(N, 2) width and height."""


class Border:
    """The edge of the analysed part of the picture.

    Args:
        view: x1, y1, x2, y2 in pixels.
    """

    _OUTWARD = np.array((-1.0, -1.0, 1.0, 1.0))

    def __init__(self, view: tuple[float, float, float, float]) -> None:
        left, top, right, bottom = self.view = view
        margin_x, margin_y = max(1.0, TOUCH * (right - left)), max(1.0, TOUCH * (bottom - top))
        self._limits = np.array((-left - margin_x, -top - margin_y, right - margin_x, bottom - margin_y))

    def touched(self, boxes: Boxes) -> Mask | None:
        """(N, 4): which sides of each box lie at the edge, in the order x1, y1, x2, y2; None if no box has any."""
        hit: Mask = boxes.xyxy * self._OUTWARD >= self._limits
        return hit if np.count_nonzero(hit) else None


def as_rows(array: Array) -> Rows:
    """(R,): the rows of a contiguous array as single items. `as_rows(a)[i] = as_rows(b)` does the same as `a[i] = b` in
    a sixth of the time."""
    rows: Rows = array.view(_row(array.itemsize * array.shape[1]))[:, 0]
    return rows


@functools.cache
def _row(size: int) -> np.dtype[np.void]:
    return np.dtype((np.void, size))


def pad_polygons(polygons: Sequence[Sequence[Point]], width: int, height: int) -> Array:
    """(5, Z, E): x1, y1, dx, dy, y2 of the edges of polygons in 0..1, in pixels; polygons with fewer edges are padded
    with edges of zero length.

    Corners on the edge of the picture are moved outside it, so that a box at the edge is inside.
    """
    count = max((len(p) for p in polygons), default=1)
    out = np.zeros((len(polygons), count, 4))
    for edges, polygon in zip(out, polygons, strict=True):
        corners = np.array(polygon) * (width, height)
        corners = np.where(corners <= 0, -2.0, corners)
        corners = np.where(corners >= (width, height), (width + 2.0, height + 2.0), corners)
        edges[: len(polygon), :2] = corners
        edges[: len(polygon), 2:] = np.roll(corners, -1, axis=0)
        edges[len(polygon) :] = np.concatenate((corners[0], corners[0]))
    x1, y1, x2, y2 = np.moveaxis(out, 2, 0)
    return np.stack((x1, y1, x2 - x1, y2 - y1, y2))


def inside(edges: Array, x: Array, y: Array) -> Mask:
    """(…,): whether each point is in its polygon, by the even-odd rule.

    Args:
        edges: (5, …, E) edges of each point's polygon, as `pad_polygons` gives them.
        x: (…, 1) pixels.
        y: (…, 1) pixels.
    """
    x1, y1, dx, dy, y2 = edges
    # A ray to the right crosses an edge if its ends lie above and below the point, and the point is to its left.
    up = y1 <= y
    crossed = dx * (y - y1) > (x - x1) * dy
    crossed ^= ~up
    crossed &= up ^ (y2 <= y)
    odd: Mask = np.bitwise_xor.reduce(crossed, axis=-1)
    return odd


class Sides:
    """`inside` for all points in all polygons at once, in half as many operations.

    Args:
        edges: (5, Z, E), as `pad_polygons` gives them.
    """

    def __init__(self, edges: Array) -> None:
        # Edges come first and points last: NumPy is fast along the last axis, and there are more points than edges.
        x1, y1, dx, dy, y2 = edges.swapaxes(1, 2)
        self._shape = y1.shape
        # dx (y - y1) > (x - x1) dy, for all edges in one product.
        self._slopes = np.stack((-dy.ravel(), dx.ravel()), axis=1)
        self._limits = (dx * y1 - dy * x1).reshape(-1, 1)
        # Each edge ends where the next one starts.
        self._corners = np.concatenate((y1, y2[-1:]))[..., None]

    def inside(self, points: Array) -> Mask:
        """(N, Z): whether each of (N, 2) points is in each polygon."""
        above = (self._slopes @ points.T > self._limits).reshape(*self._shape, -1)
        up = self._corners <= points[:, 1]
        # A ray crosses an edge if its ends are above and below the point, and the point is to its left.
        crossed = (up[1:] ^ up[:-1]) > (above ^ up[:-1])
        odd: Mask = np.bitwise_xor.reduce(crossed, axis=0).T
        return odd


def distance(edges: Sequence[Sequence[float]], x: float, y: float) -> float:
    """Pixels from a point to the nearest of some edges. For one point, since few are near a border at a time.

    Args:
        edges: x1, y1, dx, dy of each.
        x: pixels.
        y: pixels.
    """
    nearest = math.inf
    for x1, y1, dx, dy in edges:
        px, py, length2 = x - x1, y - y1, dx * dx + dy * dy
        along = min(max((px * dx + py * dy) / length2, 0.0), 1.0) if length2 else 0.0
        px -= along * dx
        py -= along * dy
        nearest = min(nearest, px * px + py * py)
    return math.sqrt(nearest)


def iou(a: Sequence[float], boxes: Any) -> Array:
    """(M,): intersection over union of a box with (M, 4) boxes."""
    b = np.asarray(boxes, np.float64).reshape(-1, 4)
    width = np.minimum(a[2], b[:, 2]) - np.maximum(a[0], b[:, 0])
    height = np.minimum(a[3], b[:, 3]) - np.maximum(a[1], b[:, 1])
    common = np.maximum(width, 0) * np.maximum(height, 0)
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    out: Array = common / np.maximum(areas - common, 1e-9)
    return out


def crossing_edges(corners: Sequence[Point]) -> tuple[int, int] | None:
    """The numbers of the first two edges of a polygon that cross or touch, except adjacent ones; None if it is
    simple."""
    a = np.array(corners, np.float64)
    count = len(a)
    if count < 4:
        return None
    b = np.roll(a, -1, axis=0)

    def turn(p: Array, q: Array, r: Array) -> Array:
        out: Array = (q[..., 0] - p[..., 0]) * (r[..., 1] - p[..., 1]) - (q[..., 1] - p[..., 1]) * (
            r[..., 0] - p[..., 0]
        )
        return np.where(np.abs(out) < 1e-12, 0.0, out)

    i, j = np.triu_indices(count, 2)
    apart = ~((i == 0) & (j == count - 1))
    i, j = i[apart], j[apart]
    p, q, r, s = a[i], b[i], a[j], b[j]
    t1, t2, t3, t4 = turn(p, q, r), turn(p, q, s), turn(r, s, p), turn(r, s, q)
    overlap = ((np.minimum(p, q) <= np.maximum(r, s) + 1e-12) & (np.minimum(r, s) <= np.maximum(p, q) + 1e-12)).all(
        axis=1
    )
    bad = np.nonzero((t1 * t2 <= 0) & (t3 * t4 <= 0) & overlap)[0]
    return (int(i[bad[0]]), int(j[bad[0]])) if len(bad) else None
