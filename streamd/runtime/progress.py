"""Logs the progress of opening many streams: at the start, and when many fail at the same time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import structlog

from streamd.types import StreamState

log = structlog.get_logger(__name__)

LEAST = 16
"""For fewer streams, each one's own log lines are enough."""
MANY = 0.1
"""Fraction of all streams that must be down at the same time before progress is logged."""
EVERY_S = 5.0
GIVE_UP_S = 30.0
"""If no stream has come up for this long, the streams still down have problems of their own."""
_LOOK_S = 0.5


class OpeningProgress:
    """Watches the states of all streams. For one thread.

    Args:
        states: returns the current states of all streams.
    """

    def __init__(self, states: Callable[[], Iterable[StreamState]]) -> None:
        self._states = states
        self._next_look = 0.0
        self._since: float | None = None
        """When opening began; None while there is nothing to log."""
        self._told = 0
        self._told_at = self._moved_at = 0.0
        self._quiet = False
        """No longer logged, until all are up or many more are down."""

    def look(self, now: float) -> None:
        """Logs progress if it is due.

        Args:
            now: monotonic seconds.
        """
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_S
        counts = Counter(self._states())
        total = sum(counts.values())
        down = counts["CONNECTING"] + counts["BACKOFF"]
        if total < LEAST:
            return
        if self._since is None:
            if down == 0:
                self._quiet = False
            elif down >= MANY * total and not self._quiet:
                self._since = self._told_at = self._moved_at = now
                self._told = total - down
            return
        opened = total - down
        if down == 0:
            log.info("all streams opened", streams=total, seconds=round(now - self._since, 1))
            self._since = None
        elif now - self._moved_at >= GIVE_UP_S:
            log.warning("some streams do not open", opened=opened, of=total, seconds=round(now - self._since, 1))
            self._since, self._quiet = None, True
        elif opened != self._told:
            self._moved_at = now
            if now - self._told_at >= EVERY_S:
                log.info("opening streams", opened=opened, of=total, seconds=round(now - self._since, 1))
                self._told, self._told_at = opened, now
