"""Since when a stream has been looked at without a gap, and of which zones it can be known who is inside."""

from __future__ import annotations

from collections.abc import Sequence

from streamd.analysis.rules import MAX_GAP_S
from streamd.analysis.rules.rule import ZoneRule

WAKE_S = 1.0
"""For so long after frames begin to come (start, outage, gap) nobody knows who had been there before."""
HOLE_S = 2.0
"""From this on a gap is taken for an outage, unless the stream is so slow that frames are always that far apart."""


class Watch:
    """Times in seconds, as those of the engine.

    Args:
        zones: of the stream.
    """

    def __init__(self, zones: Sequence[ZoneRule]) -> None:
        self.asleep = True
        """No frames come."""
        self.woke = 0.0
        """Since when they have come without a gap of more than MAX_GAP_S."""
        self.changed = False
        """Occupancy of a zone became known, or stale; for the engine to clear."""
        self._blind: list[float] = []
        self._pace = 0.0
        self._zones = list(zones)
        self._starting = list(zones)
        self._waking: list[ZoneRule] = []

    def sleep(self, wall_ns: int) -> None:
        """No frames come any more; what was known at this Unix time stays."""
        self.asleep = self.changed = True
        for rule in self._zones:
            rule.lose(wall_ns)
        self._waking.clear()

    def frame(self, now: float, before: float, wall_ns: int) -> float:
        """A frame has come.

        Args:
            now: its time.
            before: that of the one before.
            wall_ns: Unix time of the one before.

        Returns:
            The gap before it, where it is longer than MAX_GAP_S; else 0.
        """
        gap = now - before
        if gap > max(HOLE_S, 4 * self._pace):
            # Nobody said that the camera was down, or frames from before came after it was said.
            self.sleep(wall_ns)
        self._pace += 0.1 * (min(gap, 10.0) - self._pace)
        missed = gap if gap > MAX_GAP_S else 0.0
        if missed:
            self._blind = [*self._blind[-7:], before]
        if missed or self.asleep:
            self.woke = now
        if self.asleep:
            self.asleep = False
            self._waking = [rule for rule in self._zones if rule.on and rule not in self._starting]
            for rule in self._waking:
                rule.wake_at = now + WAKE_S
        if self._starting:
            for rule in self._starting:
                rule.started, rule.wake_at = now, now + WAKE_S
            self._waking += self._starting
            self._starting = []
        if self._waking:
            for rule in [r for r in self._waking if now >= r.wake_at]:
                rule.stale = False
                self._waking.remove(rule)
                self.changed = True
        return missed

    def switch(self, rule: ZoneRule, now: float, wall_ns: int) -> None:
        """The schedule of a zone has begun or ended."""
        self.changed = True
        if rule.on:
            # Who is there is known already, but not since when.
            rule.started = rule.wake_at = now
            rule.stale = self.asleep
            return
        rule.lose(wall_ns)
        if rule in self._waking:
            self._waking.remove(rule)

    def reload(self, zones: Sequence[ZoneRule]) -> None:
        """Takes the zones after a reload."""
        self._starting = [rule for rule in zones if rule not in self._zones or rule in self._starting]
        self._waking = [rule for rule in self._waking if rule in zones]
        self._zones = list(zones)

    def until(self, t: float, now: float) -> float:
        """Up to when frames came without a gap after `t`."""
        return min((begin for begin in self._blind if begin >= t), default=now)
