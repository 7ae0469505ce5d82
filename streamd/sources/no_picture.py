"""Packets arrive but no pictures come out: when this is a failure, and which one."""

from __future__ import annotations

from streamd.errors import SourceReason

REFUSED_LIMIT = 10
"""A decoder that rejected fewer packets than this since its last picture may still recover."""
FILE_LIMIT = 250
"""Consecutive packets without a picture after which a file counts as broken."""
NO_KEYFRAME_S = 30.0
"""Longest time without a picture while the decoder accepts packets: some cameras send key frames this rarely."""


class NoPictureWatch:
    """Monitors one connection.

    Args:
        live: False for a file.
        silence_s: how long a live stream may yield no picture while its packets are rejected, in seconds.
    """

    def __init__(self, live: bool, silence_s: float) -> None:
        self._live, self._silence_s = live, silence_s
        self._since: float | None = None
        self.packets = 0
        """Packets without a picture since the last picture."""
        self._refused = 0

    def picture(self) -> None:
        """There is one."""
        self._since = None
        self.packets = self._refused = 0

    def packet(self, *, refused: bool, now: float) -> SourceReason | None:
        """A packet yielded no picture. Returns the reason if this has gone on for too long.

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
