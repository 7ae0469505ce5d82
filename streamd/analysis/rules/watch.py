"""Since when a stream has been observed without a gap, and for which zones the occupancy is known."""

from __future__ import annotations

from collections.abc import Sequence

from streamd.analysis.rules import MAX_GAP_S
from streamd.analysis.rules.rule import ZoneRule

WAKE_S = 1.0
"""For this long after frames start to arrive (start, outage, gap), it is unknown which objects were there before."""
HOLE_S = 2.0
"""A gap of this length counts as an outage, unless the stream is so slow that frames are always that far apart."""
USUAL = 1.5
"""A gap of up to so many usual ones is one of a stream that is slow: it is observed at its own rate."""


class Watch:
    """Times are in seconds, as in the engine.

    Args:
        zones: zones of the stream.
    """

    def __init__(self, zones: Sequence[ZoneRule]) -> None:
        self.asleep = True
        """Whether the stream is down."""
        self.woke = 0.0
        """Time since which frames have arrived without a gap of more than MAX_GAP_S."""
        self.seen_since = 0.0
        """The same, but a stream whose frames are always that far apart has no gaps."""
        self.usual = False
        """Whether the last gap was of such a stream."""
        self.blind = False
        """Whether frames arrive in which the camera cannot see."""
        self.changed = False
        """Occupancy of a zone became known, or stale; for the engine to clear."""
        self._gaps: list[float] = []
        self._pace = 0.0
        self._paced = 0
        """Gaps that it is the mean of, at first."""
        self._zones = list(zones)
        self._starting = list(zones)
        self._waking: list[ZoneRule] = []

    def sleep(self, wall_ns: int) -> None:
        """The stream is down; what was known at this Unix time is kept."""
        self.asleep = self.changed = True
        for rule in self._zones:
            rule.lose(wall_ns)
        self._waking.clear()

    @property
    def pace_s(self) -> float:
        """How far apart frames are, in seconds; 0 before there were two."""
        return self._pace

    def see(self, seeing: bool, now: float, wall_ns: int) -> None:
        """The camera can no longer see, or can see again, since the frame at `now` of this Unix time."""
        if seeing == (not self.blind):
            return
        self.blind = not seeing
        if self.blind:
            self._gaps = [*self._gaps[-7:], now]
            self.sleep(wall_ns)
            for rule in self._zones:
                # The last occupancy may be that of the first pictures in which nothing could be seen.
                rule.known = None

    def frame(self, now: float, before: float, wall_ns: int) -> float:
        """A frame has arrived.

        Args:
            now: its time.
            before: time of the previous frame.
            wall_ns: Unix time of the previous frame.

        Returns:
            The gap before it if it is longer than MAX_GAP_S, or if the camera cannot see; otherwise 0.
        """
        gap = now - before
        if gap > max(HOLE_S, 4 * self._pace):
            # The outage was not reported, or earlier frames arrived after the report.
            self.sleep(wall_ns)
        self.usual = gap <= USUAL * self._pace
        if gap > 0:
            self._paced += 1
            self._pace += max(0.1, 1 / self._paced) * (min(gap, 10.0) - self._pace)
        missed = gap if gap > MAX_GAP_S or self.blind else 0.0
        if missed and not self.blind:
            self._gaps = [*self._gaps[-7:], before]
        if missed or self.asleep:
            self.woke = now
            if self.blind or self.asleep or not self.usual:
                self.seen_since = now
        if self.blind:
            return missed
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
        """The schedule of a zone has become active or inactive."""
        self.changed = True
        if rule.on:
            # The occupancy is already known, but not since when.
            rule.started = rule.wake_at = now
            rule.stale = self.asleep
            return
        rule.lose(wall_ns)
        if rule in self._waking:
            self._waking.remove(rule)

    def reload(self, zones: Sequence[ZoneRule]) -> None:
        """Replaces the zones after a reload."""
        self._starting = [rule for rule in zones if rule not in self._zones or rule in self._starting]
        self._waking = [rule for rule in self._waking if rule in zones]
        self._zones = list(zones)

    def until(self, t: float, now: float) -> float:
        """Time until which frames arrived without a gap after `t`."""
        return min((begin for begin in self._gaps if begin >= t), default=now)
