"""When a file's next packet is due, and which frames pass a rate limit."""

from __future__ import annotations

import math

JUMP_NS = 2_000_000_000
"""A time stamp further than this from the previous one is a jump: the clock is reset instead of waiting."""


class Pacer:
    """Plays a file at its own rate.

    Args:
        frame_ns: nominal frame interval, used if time stamps are missing or jump.
        live: what is late is made up for, however much it is, but for what the sender has held up.
    """

    def __init__(self, frame_ns: int, *, live: bool = False) -> None:
        self._frame_ns, self._live = frame_ns, live
        self.late_ns = 0
        """How long the latest packet of a live input was overdue, the sender's own delays not included."""
        self._last_stamp: int | None = None
        self._due: int | None = None
        self._again = False

    def due(self, stamp_ns: int | None, now_ns: int, blocked_ns: int = 0) -> int:
        """The monotonic time at which the packet with time stamp `stamp_ns` is due.

        A reader that fell behind by more than a jump restarts from now, without a burst to catch up, if not live.

        Args:
            stamp_ns: of the packet; None if it has none.
            now_ns: when it was read, monotonic.
            blocked_ns: how long reading it took.
        """
        if self._due is None:
            self._due = now_ns
        elif self._again:
            self._again = False
            if now_ns - self._due > JUMP_NS:
                self._due = now_ns
        else:
            step = self._frame_ns
            if stamp_ns is not None and self._last_stamp is not None:
                difference = stamp_ns - self._last_stamp
                if 0 <= difference <= JUMP_NS:
                    step = difference
                elif difference > 0 and self.late_ns:
                    # The playlist no longer listed what comes next.
                    step = min(difference, max(step, self.late_ns))
            self._due += step
            if self._live:
                self._due += self._excused(now_ns - self._due, blocked_ns)
            elif now_ns - self._due > JUMP_NS:
                self._due = now_ns
        if stamp_ns is not None:
            self._last_stamp = stamp_ns
        return self._due

    def _excused(self, late_ns: int, blocked_ns: int) -> int:
        """What the sender has held up of a packet that is late: no reader could have had it earlier."""
        late_ns = max(0, late_ns)
        excused_ns = max(0, min(late_ns - self.late_ns, blocked_ns))
        self.late_ns = late_ns - excused_ns
        return excused_ns

    def settle(self) -> None:
        """What is late now is not made up for."""
        if self._due is not None:
            self._due += self.late_ns
        self.late_ns = 0

    def end(self) -> int | None:
        """When the last frame's duration is over, monotonic; the next pass begins then. None if there was no frame."""
        if self._due is not None and not self._again:
            self._due += self._frame_ns
            self._again = True
        self._last_stamp = None
        return self._due


class MediaClock:
    """A file's time for `RateLimit`, whatever its stamps are: it goes on over repeats, jumps and standing stamps.

    Args:
        frame_ns: nominal frame interval, used when time stamps are missing, stand still or jump.
    """

    def __init__(self, frame_ns: int) -> None:
        self._frame_ns = frame_ns
        self._last_stamp: int | None = None
        self._time_ns = 0

    def at(self, stamp_ns: int | None) -> int:
        """The time of the frame with `stamp_ns`, which came after the one that was asked for last."""
        step = self._frame_ns
        if stamp_ns is not None and self._last_stamp is not None and 0 < stamp_ns - self._last_stamp <= JUMP_NS:
            step = stamp_ns - self._last_stamp
        self._last_stamp = stamp_ns
        self._time_ns += step
        return self._time_ns


class RateLimit:
    """Passes at most `max_fps` frames per second, evenly spaced.

    Args:
        max_fps: frames per second.
    """

    def __init__(self, max_fps: float) -> None:
        self.change(max_fps)
        self.jittery = False
        """Times are arrivals, which a network disturbs: a frame may come half an interval early. The mean stays."""
        self._next: float | None = None

    def change(self, max_fps: float | None) -> None:
        """Sets another limit; None passes everything. Any thread."""
        self.max_fps = max_fps or math.inf
        self._interval = 1e9 / self.max_fps

    def restart(self) -> None:
        """The next frame passes, whenever it comes."""
        self._next = None

    def admit(self, time_ns: int) -> bool:
        """True if the frame at `time_ns` may pass: its arrival, or a `MediaClock`'s time."""
        if self._next is None or abs(time_ns - self._next) > self._interval + JUMP_NS:
            self._next = time_ns + self._interval
            return True
        # Half a millisecond of tolerance: 25 fps limited to 25 must not lose frames to jitter.
        early = self._interval / 2 if self.jittery else 500_000
        if time_ns + early < self._next:
            return False
        self._next = max(self._next + self._interval, time_ns)
        return True
