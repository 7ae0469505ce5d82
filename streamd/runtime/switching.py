"""How often Python lets another thread run."""

from __future__ import annotations

import sys

SWITCH_INTERVAL_S = 0.0005
"""Of 16 files in one process on a GPU it served 3,390 and 3,440 frames a second, at 2 ms 2,740 and 2,970, at Python's
own 5 ms 2,980. While a camera is opened, FFmpeg's interrupt callback takes the GIL many times per read (see
`sources.read_limit`)."""
MANY_STREAMS = 64
MANY_SWITCH_INTERVAL_S = 0.002
"""Every thread that waits for the GIL wakes up once per interval: 200 paced streams on two cores were served 3,330
frames a second at 0.5 ms and 4,390 at 2 ms."""


def choose(streams: int) -> float:
    """Sets the interval of switching for a process with so many streams; returns the one before, in seconds."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(MANY_SWITCH_INTERVAL_S if streams > MANY_STREAMS else SWITCH_INTERVAL_S)
    return before
