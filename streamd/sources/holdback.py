"""Detects a decoder that delays its output: latency that remains after damage.

An H.264 decoder trusts a damaged header that announces more reordering, and increases its delay if a loss makes
pictures appear out of order. It never reduces the delay again, so one bad bit costs hundreds of milliseconds for the
rest of the connection. Only a new decoder restores the latency.
"""

from __future__ import annotations

MORE = 4
"""Additional pictures that a decoder may hold back: legitimate reordering detected late stays below this."""
FOR_NS = 5_000_000_000
"""How long no picture may come out sooner before the delay is considered permanent."""


class Holdback:
    """Monitors one connection."""

    def __init__(self) -> None:
        self.fed = 0
        """Packets so far."""
        self._least: int | None = None
        self._since: int | None = None
        self._size = (0, 0)

    def size(self, width: int, height: int) -> None:
        """Reports the size of the next picture. A new size means a new sequence, perhaps with other reordering: the
        decoder has just output everything it held of the old one, which says nothing about its future delay."""
        if (width, height) != self._size:
            self._size = (width, height)
            self._least = self._since = None

    def packet(self) -> int:
        """A packet goes into the decoder. Returns its number."""
        self.fed += 1
        return self.fed

    def picture(self, number: int, now_ns: int) -> int:
        """The picture of packet `number` came out. Returns how many excess pictures are permanently held back, or 0."""
        held = self.fed - number
        if self._least is None or held < self._least:
            self._least = held
        if held < self._least + MORE:
            self._since = None
        elif self._since is None:
            self._since = now_ns
        elif now_ns - self._since >= FOR_NS:
            return held - self._least
        return 0
