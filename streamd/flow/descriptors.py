"""File descriptors that the connections of streams leave to the rest of the process: the HTTP port, sinks, workers, a
reload. A process that has none left cannot even say so."""

from __future__ import annotations

import collections
import os
import resource
import threading
import time

RESERVE = 16
"""That stay free; a quarter of them where the limit is below 64."""
EACH = 4
"""That a connection takes, most often fewer."""
_SOON_S = 0.5
"""After this time, a connection's descriptors are among those in use."""
_IN_USE = "/proc/self/fd"

_lock = threading.Lock()
_granted: collections.deque[float] = collections.deque()
"""When connections were granted of late, monotonic seconds."""


def room() -> bool:
    """Whether a stream may connect now. True counts as a connection."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return True
    with _lock:
        try:
            used = len(os.listdir(_IN_USE))
        except FileNotFoundError:
            return True  # no /proc: it cannot be told
        except OSError:
            return False  # EMFILE: not even for this
        now = time.monotonic()
        while _granted and now - _granted[0] > _SOON_S:
            _granted.popleft()
        if used + EACH * (len(_granted) + 1) > soft - min(RESERVE, soft // 4):
            return False
        _granted.append(now)
        return True
