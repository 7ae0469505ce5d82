"""All zones of a stream that use the same anchor, for all its tracks at once: which are inside, by geometry alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from streamd.analysis.rules.geometry import Array, Indices, Mask, Sides, distance, inside, pad_polygons
from streamd.analysis.rules.settings import ZoneSettings

NEVER = float("inf")
FEW = 2048
"""Number of boxes × edges of zones up to which testing all of them is faster than selecting."""
Pairs = list[tuple[int, int]]
"""(number of the box, number of the zone)"""


class Zones:
    """Which tracks are in which zones. A slot is a track's row in `Tracks`.

    Args:
        settings: the zones.
        width: of the upright picture, in pixels.
        height: likewise.
        size: number of slots.
    """

    def __init__(self, settings: Sequence[ZoneSettings], width: int, height: int, size: int) -> None:
        self.settings = tuple(settings)
        count = len(self.settings)
        self.inside: Mask = np.zeros((size, count), np.bool_)
        self.due: Array = np.full((size, count), NEVER)
        """When a presence is due for a check, in seconds; see `remind`."""
        self._next = NEVER
        self.active: Mask = np.ones(count, np.bool_)
        """Zones whose schedule is active; see `switch`."""
        self._all_active = True
        self._hysteresis = np.array([zone.hysteresis for zone in self.settings])
        self.scale(width, height)

    def scale(self, width: int, height: int) -> None:
        """Sets the size of the picture in pixels."""
        self._edges = pad_polygons([zone.points for zone in self.settings], width, height)
        self._sides = Sides(self._edges)
        self._rings: list[list[list[float]]] = np.moveaxis(self._edges[:4], 0, 2).tolist()
        x1, y1 = self._edges[:2]
        low, high = np.stack((x1.min(axis=1), y1.min(axis=1))), np.stack((x1.max(axis=1), y1.max(axis=1)))
        self._middle, self._half = (low + high)[:, None, :] / 2, (high - low)[:, None, :] / 2

    def grow(self, size: int) -> None:
        """Makes room for more tracks."""
        more = size - len(self.inside), len(self.settings)
        self.inside = np.concatenate((self.inside, np.zeros(more, np.bool_)))
        self.due = np.concatenate((self.due, np.full(more, NEVER)))

    def observe(self, index: Indices, anchor: Array, height: Array) -> tuple[Pairs, Pairs]:
        """Processes the anchors of the tracks that were seen.

        Args:
            index: (N,) slots.
            anchor: (N, 2) pixels.
            height: (N,) heights of the boxes in pixels.

        Returns:
            Boxes that entered, and boxes that left by more than the hysteresis.
        """
        were = self.inside.take(index, axis=0)
        x, y = anchor[:, 0], anchor[:, 1]
        if were.size * self._edges.shape[2] <= FEW:
            now = self._sides.inside(anchor)
            if not self._all_active:
                now &= self.active
            boxes, zones = (now ^ were).nonzero()
        else:
            boxes, zones = self._choose(x, y, were)
            edges = self._edges.take(zones, axis=1)
            changed = (inside(edges, x[boxes, None], y[boxes, None]) ^ were[boxes, zones]).nonzero()[0]
            boxes, zones = boxes[changed], zones[changed]
        if not len(boxes):
            return [], []
        came, left = [], []
        for i, zone in zip(boxes.tolist(), zones.tolist(), strict=True):
            if not were[i, zone]:
                came.append((i, zone))
            elif distance(self._rings[zone], float(x[i]), float(y[i])) > self._hysteresis[zone] * height[i]:
                left.append((i, zone))
            else:
                continue
            self.inside[index[i], zone] = not were[i, zone]
        return came, left

    def _choose(self, x: Array, y: Array, were: Mask) -> tuple[Indices, Indices]:
        """Pairs of boxes and zones that must be tested: most boxes are far from most zones."""
        near: Mask = np.abs(x[:, None] - self._middle[0]) <= self._half[0]
        near &= np.abs(y[:, None] - self._middle[1]) <= self._half[1]
        near &= self.active
        near |= were
        boxes, zones = near.nonzero()
        return boxes, zones

    def switch(self, zone: int, on: bool) -> None:
        """The schedule of a zone becomes active or inactive."""
        self.active[zone] = on
        self._all_active = bool(self.active.all())
        if not on:
            self.inside[:, zone] = False
            self.due[:, zone] = NEVER

    def pending(self, index: Indices, now: float) -> Pairs:
        """Presences of visible tracks that are due for a check."""
        if now < self._next:
            return []
        self._next = float(self.due.min())
        due = self.due.take(index, axis=0) <= now
        if not np.count_nonzero(due):
            return []
        boxes, zones = due.nonzero()
        return list(zip(boxes.tolist(), zones.tolist(), strict=True))

    def remind(self, slot: int, zone: int, t: float) -> None:
        """Sets when a presence is due for a check."""
        self.due[slot, zone] = t
        self._next = min(self._next, t)

    def forget(self, slot: int) -> None:
        """A slot is free: its track starts from zero."""
        self.inside[slot] = False
        self.due[slot] = NEVER

    def leave(self, slot: int, zone: int) -> None:
        """A presence has ended."""
        self.inside[slot, zone] = False
        self.due[slot, zone] = NEVER

    def take_over(self, old: Zones, column: int, of: int) -> None:
        """Adopts the state of zone `of` from before a reload for `column`."""
        self.inside[:, column] = old.inside[:, of]
        self.due[:, column] = old.due[:, of]
        self._next = float(self.due.min())
