"""One track crossing one line: from clear of it on one side to clear of it on the other.

A detector's boxes jitter, so the side of an anchor near a line means little. A track has a home side. Once it is seen
on the other side, a `Passage` collects evidence until it is decided: either the track stayed there for `settle_s` and
got clear of the line (a crossing, if its path intersects the line between its ends), or it came back. The times at
which the path intersects the line are interpolated between the boxes before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from streamd.analysis.rules import MAX_GAP_S, TrackedFrame
from streamd.analysis.rules.geometry import Indices

NEVER = float("-inf")


class Sight(NamedTuple):
    """A track in one frame."""

    t: float
    """Seconds."""
    wall_ns: int
    epoch: int
    seq: int
    box: tuple[float, float, float, float]
    score: float


def sight(frame: TrackedFrame, t: float, box: int) -> Sight:
    """A box of a frame, as reported in an event."""
    x1, y1, x2, y2 = frame.xyxy[box].tolist()
    return Sight(t, frame.wall_ns, frame.epoch, frame.seq, (x1, y1, x2, y2), float(frame.score[box]))


@dataclass(slots=True, frozen=True)
class Crossing:
    """A track has crossed a line."""

    line: int
    slot: int
    rightward: bool
    """From the left of the line to its right."""
    certain: bool
    active: bool
    t: float
    """Seconds, interpolated."""
    at: tuple[float, float]
    """Pixels."""
    sight: Sight
    """First box beyond the line."""


class Sights:
    """The boxes of a frame whose anchors are reliable, by index.

    Args:
        frame: the frame.
        t: its time in seconds.
        boxes: index of each of them among the frame's boxes; None if all are reliable.
        active: lines whose schedule is on.
    """

    def __init__(self, frame: TrackedFrame, t: float, boxes: Indices | None, active: Sequence[bool]) -> None:
        self._frame, self._t, self._boxes, self.active = frame, t, boxes, active

    def sight(self, i: int) -> Sight:
        """Box `i`, as reported in an event."""
        return sight(self._frame, self._t, i if self._boxes is None else int(self._boxes[i]))

    def confirmed(self, i: int) -> bool:
        """Whether the track of box `i` is confirmed."""
        return bool(self._frame.confirmed[i if self._boxes is None else self._boxes[i]])


class Position(NamedTuple):
    """The position of a track's anchor relative to a line."""

    t: float
    x: float
    y: float
    off: float
    """Pixels from the (infinite) line, positive on its right."""


@dataclass(slots=True)
class Passage:
    """Evidence for one track and line, starting with the first box beyond the line."""

    home: int
    """Side on which the track was settled: -1 left, 1 right."""
    home_clear: bool
    """Whether it had been clear of the line on that side."""
    home_last: float
    """Times of the last two boxes on the home side."""
    home_second: float
    settle_s: float
    active: bool = True
    """Whether the rule's schedule was active at the intersection."""
    guess: bool = False
    """The track may not continue the one that it is linked to."""
    home_seen: bool = False
    """Whether there were two boxes on the home side within settle_s before the intersection."""
    blind: bool = False
    """Whether the stream was unobserved within settle_s before the intersection."""
    handed_on: bool = False
    """Another track continues it."""
    side: int = 0
    """Side of the last box."""
    net: int = 0
    """Intersections between the ends of the line: those away from the home side minus those back."""
    cut_t: float = NEVER
    held_from: float = NEVER
    """Time from which it counts as staying beyond: the intersection or, if that lies in a long gap, the first box after
    it."""
    cut_at: tuple[float, float] = (0.0, 0.0)
    first: Sight | None = None
    """The first box beyond the line after the last intersection."""
    back_t: float = NEVER
    """When it came back, or None."""
    beyond: int = 0
    """Boxes beyond the line within settle_s of the first one. (The intersection lies between two boxes: what is within
    settle_s of it is also within settle_s of the box on its side.)"""
    stood: bool = False
    """Whether the box before the intersection was not clear of the line. Who stands there goes at the end of a gap, not
    where a straight path would have crossed: such a track has to be seen beyond the line for longer."""
    gap: float = 0.0
    """Longest time between the boxes around an intersection."""
    clear: bool = False
    """Whether it has been clear of the line on the other side."""
    last: float = NEVER
    """Times of the last two boxes; only since the last intersection if it is beyond the line."""
    second: float = NEVER

    @property
    def evident(self) -> bool:
        """True if the crossing was fully observed."""
        return (
            self.home_clear
            and self.clear
            and not self.guess
            and not self.blind
            and self.home_seen
            and self.beyond >= 2
            and self.gap <= MAX_GAP_S
        )

    @property
    def through(self) -> bool:
        """True if the path intersected the line between its ends."""
        return self.net > 0

    @property
    def settled(self) -> bool:
        """True if the boxes so far show that the track stayed beyond the line and got clear of it."""
        if self.side != -self.home or not self.clear or self.last - self.held_from < self.settle_s:
            return False
        if self.gap <= self.settle_s or self.first is None:
            return True
        # Further boxes may still make the crossing certain.
        seen_s = self.last - self.first.t
        return seen_s >= self.settle_s or (self.beyond >= 2 and (not self.stood or seen_s >= self.settle_s / 2))

    @property
    def over(self) -> bool:
        """True if the track came back and stayed: there was no crossing."""
        return self.side == self.home and self.last - self.back_t >= self.settle_s

    def goes_back(self, cut_t: float) -> bool:
        """True if a track that returns at `cut_t` had stayed beyond the line for long enough to have crossed it."""
        return self.clear and cut_t - self.held_from >= self.settle_s

    def leave(
        self,
        cut_t: float,
        cut_at: tuple[float, float],
        within: bool,
        before: float,
        t: float,
        sight: Sight | None,
        *,
        stood: bool = False,
    ) -> None:
        """The path intersects the line away from the home side.

        Args:
            cut_t: when, interpolated.
            cut_at: where, in pixels.
            within: between the line's ends.
            before: time of the previous box.
            t: time of the current box.
            sight: the current box, if known.
            stood: see `Passage.stood`.
        """
        self.net += within
        self.stood = stood
        self.side, self.cut_t, self.cut_at, self.first = -self.home, cut_t, cut_at, sight
        self.beyond, self.clear = 0, False
        self.home_seen |= self.home_last - self.home_second <= min(self.settle_s, MAX_GAP_S)
        self.gap = t - before
        self.held_from = cut_t if self.gap <= MAX_GAP_S else t
        self.last = self.second = NEVER

    def stay(self, t: float, clear: bool) -> None:
        """A box beyond the line, including the first one."""
        if self.last > NEVER and self.last - self.cut_t < self.settle_s:
            self.gap = max(self.gap, t - self.last)
        self.beyond += self.first is not None and t - self.first.t <= self.settle_s
        self.clear |= clear
        self.second, self.last = self.last, t

    def come_back(self, cut_t: float, within: bool) -> None:
        """The path intersects the line towards the home side."""
        self.net -= within
        self.side, self.back_t = self.home, cut_t

    def at_home(self, t: float, clear: bool) -> None:
        """A box on the home side, including the first one after coming back."""
        self.home_second, self.home_last, self.last = self.home_last, t, t
        self.home_clear |= clear


def cut(before: Position, now: Position) -> tuple[float, float, float]:
    """When and where the segment between two positions intersects the line: t, x, y."""
    share = before.off / (before.off - now.off) if before.off != now.off else 1.0
    share = min(max(share, 0.0), 1.0)
    return (
        before.t + share * (now.t - before.t),
        before.x + share * (now.x - before.x),
        before.y + share * (now.y - before.y),
    )
