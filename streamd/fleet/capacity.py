"""How many frames a second a box has been seen to analyse within the latency objective."""

from __future__ import annotations

WINDOW_S = 10.0
"""Seconds that one measurement covers."""
MISSED = 0.01
"""A box that misses the objective for a larger part of its frames is at its limit."""
SUSTAINED = 3
"""Windows in a row with misses that make a measurement: a hiccup is no limit."""
PAUSE_S = 2.0
"""A longer time between two reports is a pause, of the box or of what is between: nothing can be measured over it."""
GRACE_S = 5.0
"""Nothing is measured for so long after a start or a pause, while what has piled up comes late."""
RECOVERY = 1.02
"""Factor by which a measured limit rises in a window without misses: what slowed the box may be over."""


class CapacityMeter:
    """Measures one box while it works. Pure: all times are arguments.

    Args:
        stated: frames per second as configured, which counts until the box has been seen at its limit.
    """

    def __init__(self, stated: float) -> None:
        self.stated = stated
        self._measured: float | None = None
        self._began: tuple[float, int, int] | None = None
        self._seen = self._quiet_until = float("-inf")
        self._misses = 0
        """Windows with misses so far, in a row."""

    @property
    def fps(self) -> float:
        """Frames per second within the objective."""
        return self.stated if self._measured is None else self._measured

    @property
    def measured(self) -> bool:
        """Whether `fps` was measured."""
        return self._measured is not None

    def restart(self) -> None:
        """Another process counts from zero."""
        self._began = None

    def take(self, now: float, published: int, missed: int) -> None:
        """Takes the box's totals.

        Args:
            now: monotonic seconds.
            published: frames of all streams.
            missed: those published too late, and those dropped for lack of capacity.
        """
        pause = now - self._seen > PAUSE_S
        self._seen = now
        if self._began is None or pause or published < self._began[1] or missed < self._began[2]:
            self._quiet_until, self._misses = now + GRACE_S, 0
        if self._began is None or now <= self._quiet_until:
            self._began = (now, published, missed)
            return
        began, published_then, missed_then = self._began
        if now - began < WINDOW_S:
            return
        self._began = (now, published, missed)
        frames, misses = published - published_then, missed - missed_then
        rate = frames / (now - began)
        late = misses > MISSED * (frames + misses)
        self._misses = self._misses + 1 if late else 0
        if late:
            if rate > 0 and self._misses >= SUSTAINED:
                self._measured = rate if self._measured is None else (self._measured + rate) / 2
        elif rate > self.fps:
            self._measured = rate
        elif self._measured is not None and self._measured < self.stated:
            self._measured = min(self.stated, self._measured * RECOVERY)
