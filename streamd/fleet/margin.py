"""Which streams would have no box if one box were lost, worked out one box at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from streamd.fleet.placement import Box, Demand, place


class Margin:
    """The N+1 margin of a fleet. A placement of a large fleet takes some hundredths of a second, so that all boxes at
    once would keep the coordinator from hearing reports."""

    def __init__(self) -> None:
        self.without: dict[str, list[str]] = {}
        """By box: the streams that have a box now and would have none."""
        self._boxes: list[Box] = []
        self._demands: list[Demand] = []
        self._where: dict[str, str] = {}
        self._left: list[str] = []

    def step(self, boxes: Sequence[Box], demands: Sequence[Demand], where: Mapping[str, str]) -> bool:
        """Works out the loss of one box; all of them again once something has changed.

        Args:
            boxes: those that can be given streams.
            demands: all streams.
            where: their boxes now.

        Returns:
            True if there is more to do.
        """
        if list(boxes) != self._boxes or list(demands) != self._demands or dict(where) != self._where:
            self._boxes, self._demands, self._where = list(boxes), list(demands), dict(where)
            # Every box gets its turn, even while something changes all the time.
            names = {b.name for b in boxes}
            self._left = [n for n in self._left if n in names] or sorted(names)
            self._left += sorted(names - set(self._left))
            self.without = {n: s for n, s in self.without.items() if n in names}
        if not self._left:
            return False
        lost = self._left.pop(0)
        after = place(self._demands, [b for b in self._boxes if b.name != lost], self._where, most=0)
        self.without[lost] = [name for name in after.unplaced if name in self._where]
        return bool(self._left)
