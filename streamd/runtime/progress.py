"""How far the opening of many streams has come, in the log: at the start, and where many break at the same time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import structlog

from streamd.types import StreamState

log = structlog.get_logger(__name__)

LEAST = 16
"""Of fewer streams each one's own lines tell enough."""
MANY = 0.1
"""Streams that are down at the same time before it is told, as a part of all."""
EVERY_S = 5.0
GIVE_UP_S = 30.0
"""Nothing has come up for so long: what is still down has trouble of its own."""
_LOOK_S = 0.5


class OpeningProgress:
    """Watches the states of all streams. For one thread.

    Args:
        states: of every stream, now.
    """

    def __init__(self, states: Callable[[], Iterable[StreamState]]) -> None:
        self._states = states
        self._next_look = 0.0
        self._since: float | None = None
        """When streams began to be opened; None while there is nothing to tell."""
        self._told = 0
        self._told_at = self._moved_at = 0.0
        self._quiet = False
        """Given up: told again once all are up or many more are down."""

    def look(self, now: float) -> None:
        """Logs what there is to say.

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
