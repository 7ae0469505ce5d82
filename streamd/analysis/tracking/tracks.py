"""The tracks of one stream as columns of one matrix.

A row is a quantity, a column a track, so that a batch joins its streams' tracks by one concatenation and all
arithmetic runs along rows. Everything is float64: ids stay exact up to 2**53.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import numpy as np
import numpy.typing as npt

from streamd.types import Box

Matrix = npt.NDArray[np.float64]

CENTER, SIZE = slice(0, 2), slice(2, 4)
BOX = slice(0, 4)
"""Centre x and y, width, height in pixels."""
WIDTH, HEIGHT = 2, 3
SPEED = slice(4, 8)
"""Of the four, in pixels a second."""
VARIANCE = slice(8, 14)
"""Of place, place with speed, and speed; of each first the centre's, then the size's. In squared box heights."""
UNSEEN = 14
"""Observed seconds since the last box."""
WALL = 15
"""Seconds by the clock since the last box."""
ONE = 16
"""Always 1, so that a prediction, constants and all, is one multiplication of matrices."""
AGE = 17
"""Observed seconds since the first box."""
MOVING = slice(0, 18)
"""All that changes with time alone."""
ID = 18
"""0 while the track is not confirmed."""
LEADER = 19
VOTES = 4
CLASS = slice(LEADER, LEADER + VOTES)
"""The classes that got most votes, the leader first; -1 where there is none."""
LEAD = CLASS.stop
WEIGHT = slice(LEAD, LEAD + VOTES)
"""The sum of the scores behind each."""
ROWS = WEIGHT.stop

ZERO, HALF, UNIT, TWO = (np.array([value]) for value in (0.0, 0.5, 1.0, 2.0))
"""Constants as arrays: for a few dozen tracks NumPy needs longer to make something of a Python number than to add."""

_NO_TRACKS = np.empty((ROWS, 0))


class StreamTracks:
    """The state of one stream between frames. Made by whoever owns the stream, changed only by `Tracker.step`.

    Not safe to use from two threads at once.
    """

    __slots__ = ("height", "ids", "matrix", "roi", "step_s", "time_ns", "width")

    def __init__(self, ids: Iterator[int] | None = None) -> None:
        """Args: ids: where ids come from, above 0 and each once; shared by streams whose ids are to differ."""
        self.ids = count(1) if ids is None else ids
        self.matrix: Matrix = _NO_TRACKS
        """(ROWS, tracks)"""
        self.time_ns: int | None = None
        """Of the last frame; None before the first."""
        self.step_s = 0.0
        """The last interval between frames that was possible."""
        self.width = 0
        self.height = 0
        self.roi: Box | None = None

    def __len__(self) -> int:
        """How many tracks there are, those not confirmed and those not seen now included."""
        return int(self.matrix.shape[1])

    @property
    def active(self) -> int:
        """How many confirmed tracks were seen in the last frame."""
        return int(np.count_nonzero((self.matrix[ID] > 0) & (self.matrix[WALL] == 0)))

    def forget(self) -> None:
        """Drops all tracks; ids go on where they were."""
        self.matrix = _NO_TRACKS
        self.time_ns = None
