"""A glance at a frame: a small luma picture from the decoder's own planes, and what it shows.

`picture` makes it, `motion` finds what moves in it, `gate` decides whether the network looks at the frame.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from streamd.types import Rotation

ROWS, COLUMNS = 90, 160
"""Cells of the small picture, whatever the size of the frame."""

Luma = npt.NDArray[np.uint8]


class Glance(NamedTuple):  # made for every frame: a frozen dataclass takes three times as long
    """The small picture of one frame, as it is coded: not rotated."""

    luma: Luma
    """(ROWS, COLUMNS), contiguous; never modified. Means of the luma as it is coded: 16..235 unless `full_range`."""
    captured_ns: int
    """Monotonic nanoseconds."""
    wall_ns: int
    """Unix time in nanoseconds."""
    pts_ns: int | None
    width: int
    """Coded width of the frame in pixels."""
    height: int
    rotation: Rotation
    mirrored: bool
    full_range: bool
    epoch: int
    seq: int
    key: bool = False
    """Known to be a key frame."""

    def upright(self, cells: npt.NDArray[np.generic] | None = None) -> npt.NDArray[np.generic]:
        """`cells` (ROWS, COLUMNS), or the luma, turned and mirrored as the frame is to be seen."""
        turned = np.rot90(self.luma if cells is None else cells, -self.rotation // 90)
        return turned[:, ::-1] if self.mirrored else turned
