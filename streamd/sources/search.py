"""What all searches for the parts of a file share: see `part_search`."""

from __future__ import annotations

from collections.abc import Callable

CHUNK, AHEAD = 4 << 20, 1 << 20
"""Bytes that are looked through at a time, and as far ahead of the packets."""
NEVER = 1 << 62
_JUMP, _BEFORE = 32 << 20, 8 << 20
"""Bytes that are passed over unread where a packet is farther away, as it is with `start_s`, but the last ones."""
Read = Callable[[int, int], bytes]
"""Gives bytes of a file, from one on: fewer at its end."""


class PartSearch:
    """Looks through a file for the byte at which its next part begins.

    Args:
        read: gives its bytes.
        size: gives their number.
    """

    format: str | None = None
    """FFmpeg's name of the format of parts, where it would not recognise a short one."""

    def __init__(self, read: Read, size: Callable[[], int]) -> None:
        self._read, self._size = read, size
        self._restart(0)

    def _restart(self, begin: int) -> None:
        self.begin = self.seen = begin
        """Where the present part begins, and what comes before this byte was looked through."""
        self.next_at: int | None = None
        """Where the next part begins, once that is known."""
        self.at_end = False
        """There is no more to look through, unless the file grows."""

    def start(self, begin: int) -> int:
        """A part begins there.

        Returns:
            Where it ends, if that is known before it is opened; otherwise 0.
        """
        raise NotImplementedError

    def look(self, until: int) -> None:
        """Looks for the next part, up to the byte `until` at least: `NEVER` for the end of the file."""
        self.at_end = False
        if until < NEVER and until - self.seen > _JUMP:
            self._jump(until - _BEFORE)
        while self._goes_on(until):
            self._step()

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return self._size()

    def find(self, begin: int, end: int) -> None:
        """Looks for the next part between two bytes."""
        raise NotImplementedError

    def _goes_on(self, until: int) -> bool:
        return self.next_at is None and self.seen <= until and not self.at_end and self.seen < NEVER

    def _jump(self, at: int) -> None:
        """Passes over what is before a byte."""
        self.seen = at

    def _step(self) -> None:
        """Looks through the next bytes."""
        raise NotImplementedError
