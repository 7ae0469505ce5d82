"""An object's part of a frame, on its way through a classifier."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from streamd.runtime.classify.objects import Known
from streamd.types import Box, Detections, Frame

WAITING_FRAMES = 2
"""Crops from frames in device memory that wait for a classifier: each holds a decoder's surface."""


@dataclass(slots=True)
class Crop:
    """An object's part of one frame, on its way through the classifier."""

    frame: Frame
    """Shows only the object; or the whole frame, with the object as its `roi`, in device memory."""
    bytes: int
    box: int
    """Number of the object's box in `detections`."""
    detections: Detections
    known: Known | None
    """The object's track; None without tracking."""
    track: int = 0
    generation: int = 0
    """Of the stream's box when the crop was taken; 0 outside a fleet."""


Results = Sequence[tuple[Crop, npt.NDArray[np.float64]]]
"""Crops with their probabilities (K,)."""


def part_of(corners: tuple[float, float, float, float], margin: float, width: int, height: int) -> Box:
    """The whole pixels that a box covers, enlarged by a share of its size on each side, inside the picture."""
    x1, y1, x2, y2 = corners
    across, down = (x2 - x1) * margin, (y2 - y1) * margin
    left, top = max(0, math.floor(x1 - across)), max(0, math.floor(y1 - down))
    right, bottom = min(width, math.ceil(x2 + across)), min(height, math.ceil(y2 + down))
    left, top = min(left, width - 1), min(top, height - 1)
    return Box(left, top, max(1, right - left), max(1, bottom - top))
