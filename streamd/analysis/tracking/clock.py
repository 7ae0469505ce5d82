"""When the frames of a stream were captured, by the camera's media clock where it is sane.

The compiled step has the same (`frames.c`), on the same memory."""

from __future__ import annotations

from array import array

LATEST_MEDIA_S = 0.5
"""A media clock is ignored if its step since the previous frame differs from that of the arrival by more than this, or
all its steps together fall behind by more than this."""
AHEAD_MEDIA_S = 5.0
"""They may run ahead by so much: after a time without frames, all those arrive at once that the camera had kept."""
RETURN_S = 30.0
"""Time constant with which the time of arrival is returned to."""
LONGEST_MEDIA_S = 60.0
"""A longer step of a file's media clock is a jump."""
_LONGEST_MEDIA_NS = int(LONGEST_MEDIA_S * 1e9)
NO_PTS = -(1 << 63)
"""Stands for a frame without a time stamp."""
_FARTHEST = 1 << 62
"""A time stamp beyond this many nanoseconds, 146 years, is none."""

_LIVE, _CAPTURED, _PTS, _NOW, _AHEAD, _PAUSED, _SEQ = range(7)
"""Places in `MediaClock.facts`, as in frames.c: whether the sender sets the pace, the last frame's time of arrival (0
before the first), time stamp and time, how far that is ahead of the arrival, for how long the clock of the tracks has
stood still, and the last frame's number (-1 before the first)."""


class MediaClock:
    """When frames were captured, in nanoseconds on a monotonic clock.

    The sender's media clock has no jitter; it is followed from frame to frame while it agrees with the time of
    arrival. A clock that runs fast or slow, and frames that were held up, can thus shift it by a few seconds only. For
    a file, the time of arrival means nothing: only its media clock counts, except for jumps.

    Args:
        live: the sender sets the pace.
    """

    __slots__ = ("address", "facts")

    def __init__(self, live: bool) -> None:
        self.facts = array("q", (live, 0, NO_PTS, 0, 0, 0, -1))
        """(7,) see `_LIVE`."""
        self.address: int = self.facts.buffer_info()[0]
        """Of `facts`, which stay where they are."""

    def restart(self, live: bool) -> None:
        """The next frame is the first one of a sender."""
        facts = self.facts
        facts[_LIVE], facts[_CAPTURED], facts[_PTS], facts[_AHEAD] = live, 0, NO_PTS, 0

    @property
    def now_ns(self) -> int:
        """Time of the last frame; 0 before the first."""
        return self.facts[_NOW]

    @property
    def tracks_ns(self) -> int:
        """The same on the clock of the tracks, which stands still while nothing moves."""
        return self.facts[_NOW] - self.facts[_PAUSED]

    def pause(self, passed_ns: int) -> None:
        """The clock of the tracks stood still for so long."""
        self.facts[_PAUSED] += passed_ns

    def count(self, seq: int) -> int:
        """How many frames are missing between the last one and this."""
        last, self.facts[_SEQ] = self.facts[_SEQ], seq
        return seq - last - 1 if seq > last >= 0 else 0

    def time(self, captured_ns: int, pts_ns: int | None) -> int:
        """The time of the stream's next frame.

        Args:
            captured_ns: when it arrived.
            pts_ns: its time stamp; None if it has none.
        """
        facts = self.facts
        pts = NO_PTS if pts_ns is None or not -_FARTHEST < pts_ns < _FARTHEST else pts_ns
        before, last = facts[_CAPTURED], facts[_PTS]
        facts[_CAPTURED], facts[_PTS] = captured_ns, pts
        if not before:
            facts[_NOW] = captured_ns
            return captured_ns
        passed = captured_ns - before
        if pts != NO_PTS and last != NO_PTS and pts > last:
            media = pts - last
            if not facts[_LIVE]:
                if media < _LONGEST_MEDIA_NS:
                    passed = media
            elif self._agrees(media, passed):
                ahead = facts[_AHEAD] + media - passed
                back = round(ahead * min(media / (RETURN_S * 1e9), 1.0))
                facts[_AHEAD], passed = ahead - back, media - back
        facts[_NOW] += passed if passed > 1 else 1
        return facts[_NOW]

    def _agrees(self, media: int, arrived: int) -> bool:
        ahead = self.facts[_AHEAD] + media - arrived
        return abs(media - arrived) < LATEST_MEDIA_S * 1e9 and -LATEST_MEDIA_S * 1e9 < ahead < AHEAD_MEDIA_S * 1e9
