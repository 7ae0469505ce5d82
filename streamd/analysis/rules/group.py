"""The zones and lines of a stream that use the same anchor of the boxes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from streamd.analysis.rules import TrackedFrame
from streamd.analysis.rules.crossing import NEVER, Crossing, Sights
from streamd.analysis.rules.geometry import ANCHOR_HEIGHT, EDGES, Boxes, Indices, Mask
from streamd.analysis.rules.lines import PATH, Lines, T, X, Y
from streamd.analysis.rules.rule import LineRule, ZoneRule
from streamd.analysis.rules.settings import Anchor
from streamd.analysis.rules.zones import Pairs, Zones


class Group:
    """One anchor, and all rules that use it.

    Args:
        anchor: which point of the box.
        zones: zones that use it.
        lines: lines that use it.
        size: width and height of the upright picture in pixels.
        slots: number of rows for tracks.
    """

    def __init__(
        self,
        anchor: Anchor,
        zones: Sequence[ZoneRule],
        lines: Sequence[LineRule],
        size: tuple[int, int],
        slots: int,
    ) -> None:
        self.anchor = anchor
        self.zone_rules, self.line_rules = tuple(zones), tuple(lines)
        self.zones = Zones([rule.settings for rule in zones], *size, slots)
        self.lines = Lines([rule.settings for rule in lines], *size, slots)
        self.lines_on = [True] * len(self.line_rules)
        self._share = ANCHOR_HEIGHT[anchor]
        self._edges = list(EDGES[anchor])

    def grow(self, slots: int) -> None:
        """Makes room for more tracks."""
        self.zones.grow(slots)
        self.lines.grow(slots)

    def scale(self, width: int, height: int) -> None:
        """Sets the size of the picture in pixels."""
        self.zones.scale(width, height)
        self.lines.scale(width, height)

    def anchor_of(self, box: Sequence[float]) -> tuple[float, float]:
        """Position of a box's anchor, in pixels."""
        x1, y1, x2, y2 = box
        return (x1 + x2) / 2, y1 + self._share * (y2 - y1)

    def observe(
        self,
        frame: TrackedFrame,
        now: float,
        slots: list[int],
        index: Indices,
        boxes: Boxes,
        hits: Mask | None,
    ) -> tuple[list[Crossing], Pairs, Pairs]:
        """Processes a frame.

        If the edge of the picture cuts a box, its anchor is not where the object is. Zones then use the last reliable
        anchor or, if there is none, that of the visible part of the box. Lines ignore such a box.

        Args:
            frame: the frame.
            now: its time in seconds.
            slots: slots of its boxes.
            index: the same as an array.
            boxes: its boxes.
            hits: (N, 4) sides of the boxes that are cut, or None if none is.

        Returns:
            Crossings; boxes that entered a zone; boxes that left one.
        """
        height = boxes.sizes[:, 1]
        anchor = boxes.sums * 0.5
        if self._share == 1:
            anchor[:, 1] = boxes.xyxy[:, 3]
        elif self._share == 0:
            anchor[:, 1] = boxes.xyxy[:, 1]
        cut = hits[:, self._edges].any(axis=1) if hits is not None else None
        if cut is None or not cut.any():
            sights = Sights(frame, now, None, self.lines_on)
            crossings = self.lines.observe(now, slots, index, anchor, height, sights)
        else:
            known = self.lines.state.take(index, axis=0)
            sound = np.nonzero(~cut)[0]
            sights = Sights(frame, now, sound, self.lines_on)
            picked = index[sound]
            crossings = self.lines.observe(now, picked.tolist(), picked, anchor[sound], height[sound], sights)
            frozen = cut & (known[:, T] > NEVER)
            anchor[frozen] = known[frozen, X : Y + 1]
        if not self.zone_rules:
            return crossings, [], []
        return (crossings, *self.zones.observe(index, anchor, height))

    def rules(self) -> Iterator[tuple[int, ZoneRule | LineRule]]:
        """All rules with their column in the state of their kind."""
        yield from enumerate(self.zone_rules)
        yield from enumerate(self.line_rules)

    def switch(self, column: int, rule: ZoneRule | LineRule) -> None:
        """The schedule of a rule has become active or inactive."""
        if isinstance(rule, LineRule):
            self.lines_on[column] = rule.on
        else:
            self.zones.switch(column, rule.on)

    def forget(self, slot: int) -> None:
        """A slot is free."""
        self.zones.forget(slot)
        self.lines.forget(slot)

    def take_over(self, old: Group) -> None:
        """After a reload: adopts the state of unchanged rules from the group with the same anchor."""
        self.lines.state[:, :PATH] = old.lines.state[:, :PATH]
        self.lines.guessed = dict(old.lines.guessed)
        for column, line in enumerate(self.line_rules):
            if line in old.line_rules:
                self.lines.take_over(old.lines, column, old.line_rules.index(line))
        for column, zone in enumerate(self.zone_rules):
            if zone in old.zone_rules:
                of = old.zone_rules.index(zone)
                self.zones.take_over(old.zones, column, of)
