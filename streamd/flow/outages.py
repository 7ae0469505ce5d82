"""Streams that were lost together come back together: what one of them finds out, the others need not wait for.

After a switch has restarted, each of two hundred cameras would otherwise be back only when its own wait is over, though
the first one has shown that the network is there again. The waits double, so that the last would take as long as the
outage has taken, and a camera that fails once more meanwhile, several times that.
"""

from __future__ import annotations

import threading
import time
from collections import deque

from streamd.errors import SourceReason

TOGETHER_S = 2.0
"""Streams whose connections were lost within this time of each other are taken to have been lost for one reason."""
NETWORK: frozenset[SourceReason] = frozenset(
    ("dns", "refused", "unreachable", "timeout_open", "timeout_read", "rtcp_only", "disconnected")
)
"""Failures that the network or the cameras' power may have caused. Not `auth`: cameras lock accounts."""
_RETURNS = 64
"""The latest returns, for attempts that were under way."""


class Outages:
    """The streams of this process that wait for their next attempt. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[threading.Event, float] = {}
        self._returns: deque[tuple[float, float]] = deque(maxlen=_RETURNS)
        """When what had been lost when was back."""

    def wait(self, wake: threading.Event, lost_at: float, tried_at: float, delay_s: float) -> bool:
        """Waits for `delay_s` seconds, or until a stream that was lost at the same time is back, or `wake` is set.

        Args:
            wake: the stream's own, not shared; cleared by whoever waits.
            lost_at: when its last connection ended, monotonic seconds.
            tried_at: when the attempt that has failed began. What was back since then, it may have just missed.
            delay_s: longest wait.

        Returns:
            True if the wait was cut short.
        """
        with self._lock:
            if any(back_at >= tried_at and abs(since - lost_at) <= TOGETHER_S for since, back_at in self._returns):
                return True
            self._waiting[wake] = lost_at
        try:
            return wake.wait(delay_s)
        finally:
            with self._lock:
                del self._waiting[wake]

    def back(self, lost_at: float) -> None:
        """A stream whose last connection ended at `lost_at` has a new one: wakes those that were lost with it."""
        with self._lock:
            self._returns.append((lost_at, time.monotonic()))
            for wake, since in self._waiting.items():
                if abs(since - lost_at) <= TOGETHER_S:
                    wake.set()


outages = Outages()
"""Of this process."""
