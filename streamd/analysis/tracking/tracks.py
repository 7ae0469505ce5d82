"""The tracks of one stream as columns of one matrix.

A row is a quantity and a column a track, so one concatenation joins a batch's tracks, and all arithmetic runs along
rows. Everything is float64: ids stay exact up to 2**53."""

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
"""Velocities of these four, in pixels per second."""
VARIANCE = slice(8, 14)
"""Variance of the position, covariance of position and velocity, variance of the velocity; each for the centre, then
for the size. In squared box heights."""
UNSEEN = 14
"""Observed seconds since the last box."""
WALL = 15
"""Elapsed seconds since the last box."""
ONE = 16
"""Always 1, so that a prediction, constants and all, is one multiplication of matrices."""
AGE = 17
"""Observed seconds since the first box."""
MOVING = slice(0, 18)
"""The rows that change with time alone."""
ID = 18
"""0 while the track is not confirmed."""
LEADER = 19
VOTES = 4
CLASS = slice(LEADER, LEADER + VOTES)
"""The classes with the most votes, the leader first; -1 for none."""
LEAD = CLASS.stop
WEIGHT = slice(LEAD, LEAD + VOTES)
"""The sum of the scores of each."""
ROWS = WEIGHT.stop

ZERO, HALF, UNIT, TWO = (np.array([value]) for value in (0.0, 0.5, 1.0, 2.0))
"""Constants as arrays: for a few dozen tracks, NumPy takes longer to convert a Python number than to add."""

_NO_TRACKS = np.empty((ROWS, 0))


class StreamTracks:
    """The state of one stream between frames. Created by the owner of the stream, changed only by `Tracker.step`.

    Not safe to use from two threads at once.
    """

    __slots__ = ("height", "ids", "matrix", "roi", "step_s", "time_ns", "width")

    def __init__(self, ids: Iterator[int] | None = None) -> None:
        """Args: ids: source of ids, positive and unique; shared by streams whose ids must differ."""
        self.ids = count(1) if ids is None else ids
        self.matrix: Matrix = _NO_TRACKS
        """(ROWS, tracks)"""
        self.time_ns: int | None = None
        """Time of the last frame; None before the first."""
        self.step_s = 0.0
        """The last valid interval between frames."""
        self.width = 0
        self.height = 0
        self.roi: Box | None = None

    def __len__(self) -> int:
        """Number of tracks, including those not confirmed and those currently not seen."""
        return int(self.matrix.shape[1])

    @property
    def active(self) -> int:
        """Number of confirmed tracks seen in the last frame."""
        return int(np.count_nonzero((self.matrix[ID] > 0) & (self.matrix[WALL] == 0)))

    def pause(self, seconds: float) -> None:
        """Nothing moved for a time since the last frame, so the network did not look: what was not seen then would not
        have been seen meanwhile, either; what was seen stays as it is."""
        unseen = self.matrix[WALL] > 0
        if np.count_nonzero(unseen):
            matrix = self.matrix.copy()
            matrix[UNSEEN:ONE, unseen] += seconds
            self.matrix = matrix

    def forget(self) -> None:
        """Drops all tracks; ids continue."""
        self.matrix = _NO_TRACKS
        self.time_ns = None
