"""Which cells of the small picture lie in boxes, masks and the crop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from streamd.analysis.compiled import address_of
from streamd.analysis.glance import COLUMNS, ROWS
from streamd.analysis.glance.cells import Cells
from streamd.analysis.glance.motion_native import Functions, library
from streamd.analysis.rules.geometry import inside, pad_polygons
from streamd.types import Box, Rotation

ENLARGED = 0.15
"""Of a box, on each side: what moves with an object, such as its shadow."""
Shape = tuple[int, int, Rotation, bool]
"""Upright width and height in pixels, and how the coded picture is turned and mirrored."""


def _coded(x: Any, y: Any, rotation: Rotation, mirrored: bool) -> tuple[Any, Any]:
    """Where a point of the upright picture lies in the coded one; both in 0..1."""
    if mirrored:
        x = 1 - x
    if rotation == 90:
        return y, 1 - x
    if rotation == 180:
        return 1 - x, 1 - y
    return (1 - y, x) if rotation == 270 else (x, y)


def _upright(x: Any, y: Any, rotation: Rotation, mirrored: bool) -> tuple[Any, Any]:
    """The other way round."""
    if rotation == 90:
        x, y = 1 - y, x
    elif rotation == 180:
        x, y = 1 - x, 1 - y
    elif rotation == 270:
        x, y = y, 1 - x
    return (1 - x if mirrored else x), y


def cells_of(boxes: npt.NDArray[np.float32], shape: Shape, functions: Functions | bool | None = True) -> Cells:
    """(ROWS, COLUMNS) of the coded picture: which cells lie in one of the boxes (N, 4), each a little enlarged."""
    functions = library() if functions is True else functions
    if not functions or not len(boxes):
        return _cells_of(boxes, shape)
    out: Cells = np.empty((ROWS, COLUMNS), np.bool_)
    boxes = np.ascontiguousarray(boxes, np.float32)
    functions.boxes(address_of(boxes), len(boxes), *shape, address_of(out))
    return out


def _cells_of(boxes: npt.NDArray[np.float32], shape: Shape) -> Cells:
    out = np.zeros((ROWS, COLUMNS), np.bool_)
    if not len(boxes):
        return out
    width, height, rotation, mirrored = shape
    margin = ENLARGED * (boxes[:, 2:] - boxes[:, :2])
    low = (boxes[:, :2] - margin) / (width, height)
    high = (boxes[:, 2:] + margin) / (width, height)
    x1, y1 = _coded(low[:, 0], low[:, 1], rotation, mirrored)
    x2, y2 = _coded(high[:, 0], high[:, 1], rotation, mirrored)
    left, right = np.floor(np.minimum(x1, x2) * COLUMNS) - 1, np.ceil(np.maximum(x1, x2) * COLUMNS) + 1
    top, bottom = np.floor(np.minimum(y1, y2) * ROWS) - 1, np.ceil(np.maximum(y1, y2) * ROWS) + 1
    corners = np.stack((np.maximum(top, 0), np.maximum(bottom, 0), np.maximum(left, 0), np.maximum(right, 0)), axis=1)
    for a, b, c, d in corners.astype(int).tolist():
        out[a:b, c:d] = True
    return out


def ignored_cells(masks: Sequence[Sequence[tuple[float, float]]], crop: Box | None, shape: Shape) -> Cells:
    """(ROWS, COLUMNS) of the coded picture: cells whose centre lies in a mask, or outside the crop."""
    width, height, rotation, mirrored = shape
    rows, columns = np.mgrid[0:ROWS, 0:COLUMNS]
    x, y = _upright((columns + 0.5) / COLUMNS, (rows + 0.5) / ROWS, rotation, mirrored)
    out = np.zeros((ROWS, COLUMNS), np.bool_)
    if crop is not None:
        px, py = x * width, y * height
        out |= (px < crop.x) | (px >= crop.x + crop.width) | (py < crop.y) | (py >= crop.y + crop.height)
    for mask in masks:
        edges = pad_polygons([mask], width, height)
        out |= inside(edges, x.reshape(-1, 1) * width, y.reshape(-1, 1) * height).reshape(ROWS, COLUMNS)
    return out
