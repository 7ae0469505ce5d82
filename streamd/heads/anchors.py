"""YOLOv5's anchors, and the decoding that its raw forms share.

After the YOLOv5 repository's Detect layer (release 6): xy = (2σ − 0.5 + cell) · stride, wh = (2σ)² · anchor,
score = objectness · class.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from streamd.errors import ConfigError
from streamd.heads import DecodeOptions
from streamd.heads.common import corners, label_boxes
from streamd.types import Candidates, Float32Array

Rows = tuple[tuple[float, ...], ...]
"""Anchors w,h,… in input pixels, one row per stride."""
COCO_ANCHORS: dict[int, tuple[float, ...]] = {
    8: (10, 13, 16, 30, 33, 23),
    16: (30, 61, 62, 45, 59, 119),
    32: (116, 90, 156, 198, 373, 326),
}
"""Anchor sizes w,h,… in input pixels, by stride, with which YOLOv5's P5 models were trained."""
COCO_COUNT = 3
"""Number of anchors per stride of `COCO_ANCHORS`."""
_HALF_A_CELL = np.float32(0.5)


def coco_anchors(strides: Sequence[int]) -> Rows | None:
    """YOLOv5's own anchors for these strides; None if it has none for one of them."""
    return tuple(COCO_ANCHORS[s] for s in strides) if set(strides) <= set(COCO_ANCHORS) else None


def check_row(row: Sequence[float], count: int | None = None) -> None:
    """Checks a stride's anchors.

    Args:
        row: w,h,…
        count: how many anchors there must be, if the outputs determine it.

    Raises:
        ConfigError: not pairs of positive numbers, or not `count` of them.
    """
    if not row or len(row) % 2 or min(row) <= 0 or (count is not None and len(row) != 2 * count):
        needed = "positive numbers," if count is None else f"{2 * count} positive numbers"
        raise ConfigError(f"model.head.anchors: a row needs {needed} (w,h per anchor)")


def origins(column: npt.NDArray[np.intp], row: npt.NDArray[np.intp]) -> Float32Array:
    """(M, 2) offset added to 2σ(xy), in cells: the cell minus one half, since centres may be half a cell outside."""
    origin: Float32Array = np.stack([column, row], axis=1).astype(np.float32) - _HALF_A_CELL
    return origin


def decode(
    shares: Float32Array, origin: Float32Array, stride: Float32Array, anchor: Float32Array, options: DecodeOptions
) -> Candidates:
    """Candidates of the cells that may hold a box.

    Args:
        shares: (M, 5+C) outputs after the sigmoid: x, y, w, h, objectness, classes.
        origin: (M, 2) by `origins`.
        stride: (M,) input pixels per cell.
        anchor: (M, 2) width and height in input pixels.
        options: thresholds.
    """
    centre = (shares[:, :2] * 2 + origin) * stride[:, None]
    size = np.square(shares[:, 2:4] * 2) * anchor
    return label_boxes(
        corners(centre[:, 0], centre[:, 1], size[:, 0], size[:, 1]), shares[:, 5:] * shares[:, 4:5], options
    )
