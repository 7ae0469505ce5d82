"""Whether the wall clock can be trusted with ages: it may be years off after a boot, until somebody sets it."""

from __future__ import annotations

import ctypes
import math
import os

STEADY_S = 600.0
"""Nothing is deleted for its age until the clock has run for this long without a step: after a boot, it may be years
off until it is synchronized."""
STEP_S = 5.0
LEAP_S = 86_400.0
"""A clock that nobody sets may go wrong by so much, and a machine may be off for so long."""
EARLIEST_S = 1_704_067_200.0
"""2024: a time before that is one of a clock without a battery."""
_TIMEX_BYTES, _TIME_ERROR = 512, 5


class Clock:
    """Whether the wall clock can be trusted with ages.

    It is if it has not been stepped for a while, and either the kernel says that it is synchronized, or it fits what
    earlier runs have left. Otherwise (a machine that was off for a long time, or a clock that is years off) nothing is
    old until this process itself has run for as long as things are kept.

    Args:
        now: monotonic seconds.
        wall: Unix seconds.
    """

    def __init__(self, now: float, wall: float) -> None:
        self._began = self._steady_since = now
        self._offset = wall - now
        self.newest = 0.0
        """When earlier runs left something last, Unix seconds; 0: unknown."""

    def look(self, now: float, wall: float, max_age_s: float = math.inf) -> bool:
        """True if ages count. Called about once a second.

        Args:
            now: monotonic seconds.
            wall: Unix seconds.
            max_age_s: how long things are kept.
        """
        offset = wall - now
        if abs(offset - self._offset) > STEP_S:
            self._steady_since = now
        self._offset = offset
        if now - self._steady_since < STEADY_S or wall < EARLIEST_S:
            return False
        fits = not self.newest or abs(offset + self._began - self.newest) <= min(LEAP_S, max_age_s)
        return fits or now - self._began >= max_age_s or synchronized()


def plausible(at: float, wall: float) -> bool:
    """Whether something can be of this time. If not, its clock was wrong.

    Args:
        at: Unix seconds.
        wall: the same, now.
    """
    return EARLIEST_S <= at <= wall + LEAP_S


def synchronized() -> bool:
    """Whether the kernel or systemd-timesyncd says that the clock follows a reference. False if neither can be asked:
    systemd's `ProtectClock=` forbids the first."""
    if os.path.exists("/run/systemd/timesync/synchronized"):
        return True
    # struct timex (linux/timex.h) of zeros: modes 0, nothing is set.
    state: int = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    return 0 <= state < _TIME_ERROR
