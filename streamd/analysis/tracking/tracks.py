"""The tracks of one stream as columns of one matrix.

A row is a quantity and a column a track, so one concatenation joins a batch's tracks, and all arithmetic runs along
rows. Everything is float64: ids stay exact up to 2**53."""

from __future__ import annotations

import ctypes
import threading
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from streamd.analysis.compiled import address_of, compiled
from streamd.types import Box

if TYPE_CHECKING:
    from streamd.analysis.tracking.clock import MediaClock

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

_FIRST_ROOM = 16
"""Tracks that a stream has room for at first."""

ADDRESS, ROOM, COUNT, ACTIVE, KNOWN, TIME, FRAME_WIDTH, FRAME_HEIGHT, PART = range(9)
"""Places in `StreamTracks.facts`, as in bytetrack.c: the address of the tracks, for how many there is room, how many
there are, how many of them are active (-1: to be counted), whether there was a frame, its time, width, height, and
whether a part of it was analysed, with x, y, width and height of that in the places after."""
STEP = PART + 5
"""The last valid interval in nanoseconds."""
IDS, CLOCK = STEP + 1, STEP + 2
"""The addresses of the next id, and of the stream's clock (0: it has none)."""
_FACTS = CLOCK + 1
LIBRARY = Path(__file__).with_name("_bytetrack")
"""What is compiled of the tracker, without its suffix."""


class TrackIds(Iterator[int]):
    """Ids of tracks: one after the other, none twice, whichever threads ask.

    Args:
        first: the first one.
    """

    __slots__ = ("_lock", "_next", "_take", "address")

    def __init__(self, first: int = 1) -> None:
        self._next = array("q", [first])
        self.address: int = self._next.buffer_info()[0]
        """Of the next id, where the compiled step takes it."""
        self._lock = threading.Lock()
        self._take: Callable[[int], int] | None = None
        found = compiled(LIBRARY, ("take_id",), hold=True)
        if found is not None:
            # The compiled step does not take the lock of Python's way.
            (self._take,) = found
            found[0].argtypes, found[0].restype = [ctypes.c_void_p], ctypes.c_int64

    def __next__(self) -> int:
        """The next one."""
        if self._take is not None:
            return self._take(self.address)
        with self._lock:
            number = self._next[0]
            self._next[0] = number + 1
            return number


class StreamTracks:
    """The state of one stream between frames. Created by the owner of the stream, changed only by `Tracker.step`.

    The compiled step reads and writes it in place. Not safe to use from two threads at once, except `active`.
    """

    __slots__ = ("_block", "_clock", "address", "facts", "ids")

    def __init__(self, ids: TrackIds | None = None, clock: MediaClock | None = None) -> None:
        """Args:
        ids: source of ids, positive and unique; shared by streams whose ids must differ.
        clock: of the stream, for steps that find out the time of a frame by themselves.
        """
        self.ids = TrackIds() if ids is None else ids
        self._clock = clock
        self.facts = array("q", bytes(8 * _FACTS))
        """(`_FACTS`,) see `ADDRESS`."""
        self.address: int = self.facts.buffer_info()[0]
        """Of `facts`, which stay where they are."""
        self.facts[IDS], self.facts[CLOCK] = self.ids.address, 0 if clock is None else clock.address
        self._block = np.empty(0)
        self.reserve(_FIRST_ROOM)

    @property
    def matrix(self) -> Matrix:
        """(ROWS, tracks): a view, whose content changes with the next step."""
        n = self.facts[COUNT]
        view: Matrix = self._block[: ROWS * n].reshape(ROWS, n)
        return view

    @matrix.setter
    def matrix(self, tracks: Matrix) -> None:
        self.reserve(tracks.shape[1])
        self.facts[COUNT], self.facts[ACTIVE] = tracks.shape[1], -1
        self.matrix[:] = tracks

    def reserve(self, tracks: int) -> None:
        """Makes room for so many tracks; those that there are stay."""
        if tracks <= self.facts[ROOM]:
            return
        room = max(tracks, 2 * self.facts[ROOM])
        block, known = np.empty(ROWS * room), ROWS * self.facts[COUNT]
        block[:known] = self._block[:known]
        self._block = block
        self.facts[ADDRESS], self.facts[ROOM] = address_of(block), room

    def remember(self, time_ns: int, width: int, height: int, roi: Box | None, step_s: float) -> None:
        """Makes a frame the stream's last one; `step_s` is the interval before it, if that is above 0."""
        facts = self.facts
        facts[KNOWN], facts[TIME], facts[FRAME_WIDTH], facts[FRAME_HEIGHT] = 1, time_ns, width, height
        facts[PART:STEP] = array("q", (0, 0, 0, 0, 0) if roi is None else (1, *roi))
        if step_s > 0:
            facts[STEP] = round(step_s * 1e9)

    @property
    def time_ns(self) -> int | None:
        """Time of the last frame; None before the first."""
        return self.facts[TIME] if self.facts[KNOWN] else None

    @property
    def step_s(self) -> float:
        """The last valid interval between frames."""
        return self.facts[STEP] / 1e9

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the last frame."""
        return self.facts[FRAME_WIDTH], self.facts[FRAME_HEIGHT]

    @property
    def roi(self) -> Box | None:
        """The analysed part of the last frame; None for all of it."""
        return Box(*self.facts[PART + 1 : STEP]) if self.facts[PART] else None

    def __len__(self) -> int:
        """Number of tracks, including those not confirmed and those currently not seen."""
        return self.facts[COUNT]

    @property
    def active(self) -> int:
        """Number of confirmed tracks seen in the last frame."""
        known = self.facts[ACTIVE]
        if known < 0:
            tracks = self.matrix
            known = int(np.count_nonzero((tracks[ID] > 0) & (tracks[WALL] == 0)))
        return known

    def pause(self, seconds: float) -> None:
        """Nothing moved for a time since the last frame, so the network did not look: what was not seen then would not
        have been seen meanwhile, either; what was seen stays as it is."""
        tracks = self.matrix
        unseen = tracks[WALL] > 0
        if np.count_nonzero(unseen):
            tracks[UNSEEN:ONE, unseen] += seconds

    def forget(self) -> None:
        """Drops all tracks; ids continue."""
        self.facts[COUNT] = self.facts[ACTIVE] = self.facts[KNOWN] = 0
