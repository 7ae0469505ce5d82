"""Whether a decoder has come to hold pictures back: latency that damage leaves behind.

An H.264 decoder believes a damaged header that announces more reordering, and raises its delay where a loss made
pictures seem out of order. It never lowers it again, so that one bad bit costs hundreds of milliseconds for as long as
the connection lasts. Only a fresh decoder is quick again.
"""

from __future__ import annotations

MORE = 4
"""Pictures that a decoder may hold back beyond what it once did: reordering that it learns of late is less."""
FOR_NS = 5_000_000_000
"""So long, without a picture that came sooner, before it counts as for good."""


class Holdback:
    """Watches one connection."""

    def __init__(self) -> None:
        self._fed = 0
        self._least: int | None = None
        self._since: int | None = None
        self._size = (0, 0)

    def size(self, width: int, height: int) -> None:
        """The size of the next picture. With another one the sequence, and perhaps its reordering, is another: all
        that the decoder still held of the one before came out at once, which says nothing of what is to come."""
        if (width, height) != self._size:
            self._size = (width, height)
            self._least = self._since = None

    def packet(self) -> int:
        """One more packet goes into the decoder. Returns its number."""
        self._fed += 1
        return self._fed

    def picture(self, number: int, now_ns: int) -> int:
        """The picture of packet `number` came out. Returns how many too many are held back for good, 0 for none."""
        held = self._fed - number
        if self._least is None or held < self._least:
            self._least = held
        if held < self._least + MORE:
            self._since = None
        elif self._since is None:
            self._since = now_ns
        elif now_ns - self._since >= FOR_NS:
            return held - self._least
        return 0
