"""Packets come and no picture does: when that is a failure, and which."""

from __future__ import annotations

from streamd.errors import SourceReason

REFUSED_LIMIT = 10
"""A decoder that refused fewer packets than this since its last picture may still find its way."""
FILE_LIMIT = 250
"""Packets in a row without one picture before a file counts as broken."""
NO_KEYFRAME_S = 30.0
"""Longest time without a picture from packets that the decoder accepts: some cameras send a key frame this rarely."""


class NoPictureWatch:
    """Watches one connection.

    Args:
        live: False for a file.
        silence_s: how long a live stream may be without a picture while its packets are refused, in seconds.
    """

    def __init__(self, live: bool, silence_s: float) -> None:
        self._live, self._silence_s = live, silence_s
        self._since: float | None = None
        self.packets = 0
        """Without a picture since the last one."""
        self._refused = 0

    def picture(self) -> None:
        """There is one."""
        self._since = None
        self.packets = self._refused = 0

    def packet(self, *, refused: bool, now: float) -> SourceReason | None:
        """A packet gave no picture. Returns the reason where this has gone on for too long.

        Args:
            refused: the decoder reported an error.
            now: monotonic seconds.
        """
        self.packets += 1
        self._refused += refused
        if not self._live:
            return "corrupt" if self.packets >= FILE_LIMIT else None
        if self._since is None:
            self._since = now
        if self._refused >= REFUSED_LIMIT and now - self._since >= self._silence_s:
            return "corrupt"
        return "no_keyframe" if now - self._since >= NO_KEYFRAME_S else None
