"""The state of each track of a stream: one row of an array per track."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from streamd.analysis.rules import TrackedFrame
from streamd.analysis.rules.crossing import Sight
from streamd.analysis.rules.geometry import Array, Boxes, Indices, Mask, as_rows, iou

(LAST, FRAME, EPOCH, SEQ, FIRST, SEEN, CONFIRMED, SCORE, CLASS, CUT, X1, Y1, X2, Y2, REF_X, REF_Y, REF_T, OLD_X, OLD_Y,
 OLD_T) = range(20)  # fmt: skip
COLUMNS = 20
"""The last frame it was in: seconds, number, epoch, seq. Time of the first box, and observed time, in seconds.
Confirmed; score; class; 1 if the last box touched the edge of the picture; the box. Where and since when it has been
standing, and the same for the previous place, as sums of two corners (twice the centre)."""

STILL = 0.25
"""An object stands while its centre stays within this many sizes (square root of the box's area) of where it was."""
STEP_S = 0.1
"""How often that is checked."""
LINK_S = 2.0
"""Longest time after which a new track may continue one that is no longer seen."""
SURE_S, SURE_OFF, SURE_SIZE = 0.4, 0.2, 0.8
"""Up to this time, this distance in heights, and from this ratio of heights on, that is not a guess."""


class Moment(NamedTuple):
    """The current time, on all clocks."""

    now: float
    """Seconds since `base_ns`."""
    wall_ns: int
    base_ns: int

    def wall(self, t: float) -> int:
        """Unix nanoseconds of a recent time in seconds."""
        return self.wall_ns - round((self.now - t) * 1e9)

    def ns(self, t: float) -> int:
        """Monotonic nanoseconds of a time in seconds."""
        return self.base_ns + round(t * 1e9)


class Tracks:
    """Rows of all tracks that are active or not forgotten yet.

    Args:
        grown: called with the new number of rows when there are more.
    """

    def __init__(self, grown: Callable[[int], None]) -> None:
        self.rows: Array = np.zeros((32, COLUMNS))
        self.ids: list[int] = [-1] * 32
        self.slot_of: dict[int, int] = {}
        self._free = list(range(31, -1, -1))
        self._grown = grown
        self._items = as_rows(self.rows)
        self._stamp = np.zeros(4)
        self._look = 0.0

    def _new(self, track: int) -> int:
        if not self._free:
            size = len(self.ids)
            self.rows = np.concatenate((self.rows, np.zeros_like(self.rows)))
            self._items = as_rows(self.rows)
            self.ids += [-1] * size
            self._free = list(range(2 * size - 1, size - 1, -1))
            self._grown(2 * size)
        slot = self._free.pop()
        self.ids[slot] = track
        self.slot_of[track] = slot
        return slot

    def free(self, slot: int) -> None:
        """Forgets a track."""
        # The id may already belong to a newer track.
        if self.slot_of.get(self.ids[slot]) == slot:
            del self.slot_of[self.ids[slot]]
        self.ids[slot] = -1
        self.rows[slot] = 0
        self._free.append(slot)

    def alive(self) -> list[int]:
        """Slots of all tracks not forgotten yet."""
        return [slot for slot, track in enumerate(self.ids) if track != -1]

    def step(
        self, frame: TrackedFrame, boxes: Boxes, cut: Mask | None, now: float, number: int, before: float | None
    ) -> tuple[list[int], Indices, Array, list[int]]:
        """Processes the boxes of a frame.

        Args:
            frame: the frame.
            boxes: its boxes.
            cut: (N,) True if a box touches the edge; None if none does.
            now: its time in seconds.
            number: counts frames.
            before: the time of the previous frame, in seconds; None if the stream was not observed since.

        Returns:
            The slot of each box, as a list and as an array; the rows; indices of the boxes whose tracks are new.
        """
        find = self.slot_of.get
        slots = [find(track, -1) for track in frame.track.tolist()]
        born = []
        if -1 in slots:
            for i, slot in enumerate(slots):
                if slot == -1:
                    slots[i] = slot = self._new(int(frame.track[i]))
                    self.rows[slot, FIRST] = now
                    self.rows[slot, REF_X : REF_T + 1] = self.rows[slot, OLD_X : OLD_T + 1] = *boxes.sums[i], now
                    born.append(i)
        index = np.array(slots, np.int64)
        rows = self.rows.take(index, axis=0)
        if before is not None:
            gap = now - before
            steady = rows[:, FRAME] == number - 1
            if np.count_nonzero(steady) == len(slots):
                rows[:, SEEN] += gap
            else:
                rows[steady, SEEN] += gap
        if now >= self._look:
            self._look = now + STEP_S
            self._moved(rows, boxes, now)
        self._stamp[:] = now, number, frame.epoch, frame.seq
        rows[:, : SEQ + 1] = self._stamp
        rows[:, CONFIRMED] = frame.confirmed
        rows[:, SCORE] = frame.score
        rows[:, CLASS] = frame.class_id
        rows[:, CUT] = 0.0 if cut is None else cut
        rows[:, X1 : Y2 + 1] = boxes.xyxy
        self._items[index] = as_rows(rows)
        return slots, index, rows, born

    def _moved(self, rows: Array, boxes: Boxes, now: float) -> None:
        """Records a new place for objects that have left the one where they stood."""
        away = boxes.sums - rows[:, REF_X : REF_Y + 1]
        away *= away
        moved = away[:, 0] + away[:, 1] > boxes.sizes[:, 0] * boxes.sizes[:, 1] * (4 * STILL * STILL)
        if np.count_nonzero(moved):
            rows[moved, OLD_X : OLD_T + 1] = rows[moved, REF_X : REF_T + 1]
            rows[moved, REF_X : REF_Y + 1] = boxes.sums[moved]
            rows[moved, REF_T] = now

    def last_sight(self, slot: int, moment: Moment) -> Sight:
        """The track in the last frame that it was in."""
        row = self.rows[slot].tolist()
        x1, y1, x2, y2 = row[X1 : Y2 + 1]
        wall_ns = moment.wall(row[LAST])
        return Sight(row[LAST], wall_ns, int(row[EPOCH]), int(row[SEQ]), (x1, y1, x2, y2), row[SCORE])

    def unseen(self, now: float, number: int) -> list[int]:
        """Slots of tracks that are not in frame `number`, but were seen shortly before."""
        rows = self.rows
        found: list[int] = np.nonzero(
            (rows[:, FRAME] > 0) & (rows[:, FRAME] < number) & (rows[:, LAST] >= now - LINK_S)
        )[0].tolist()
        return found

    def predecessor(self, slot: int, unseen: list[int], now: float) -> tuple[int, bool] | None:
        """Determines which unseen track a new one continues.

        The box of each is extrapolated to now by its velocity. A box is near enough if it lies within half a height
        plus half a height per second, or overlaps by half.

        Returns:
            Its slot, and whether it is certain: the only one that fits, near, and just lost. None if none fits.
        """
        row, rows = self.rows[slot], self.rows[unseen]
        elapsed = now - rows[:, LAST]
        # Its velocity is derived from its movement since it last stood elsewhere, a quarter to half of its size away.
        center = (rows[:, X1:X2] + rows[:, X2 : Y2 + 1]) * 0.5
        moved = center - rows[:, OLD_X : OLD_Y + 1] * 0.5
        center += moved * (elapsed / np.maximum(rows[:, LAST] - rows[:, OLD_T], 0.1))[:, None]
        here = (row[X1:X2] + row[X2 : Y2 + 1]) * 0.5
        height, heights = row[Y2] - row[Y1], rows[:, Y2] - rows[:, Y1]
        off = np.sqrt(((center - here) ** 2).sum(axis=1)) / np.maximum(np.minimum(height, heights), 1.0)
        gate = 0.5 + elapsed
        same = (elapsed <= LINK_S) & (rows[:, CLASS] == row[CLASS])
        same &= (heights > 0.6 * height) & (height > 0.6 * heights)
        fits = same & ((off <= gate) | (iou(row[X1 : Y2 + 1].tolist(), rows[:, X1 : Y2 + 1]) >= 0.5))
        found = np.nonzero(fits)[0]
        if not len(found):
            return None
        best = found[np.argmin(off[found])]
        # Another track that fits makes it a guess, unless that one is much farther away.
        rivals = off[found] < 2 * off[best] + 0.3
        alike = min(height, heights[best]) >= SURE_SIZE * max(height, heights[best])
        return unseen[best], bool(rivals.sum() == 1 and elapsed[best] <= SURE_S and off[best] <= SURE_OFF and alike)
