"""Which pictures must not pass for sound ones: what follows a loss, up to the next clean key frame.

A damaged picture spoils all that are predicted from it, and no decoder marks those. Three signs tell of damage: the
decoder's own flags (software H.264 and older: it knows what it concealed), packets that the demuxer marks or the
decoder refuses, and RTP packets that never came. The last is the only sign for H.265 and on a GPU, whose decoders
conceal silently; FFmpeg tells it nowhere but in its log.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av.logging import Capture

HOLD_NS = 30_000_000_000
"""Longest time without a new sign of damage that pictures are withheld: some cameras never send a second key frame."""

_MISSED = re.compile(r"RTP: missed (\d+) packets")


class PacketLossListener:
    """Hears in FFmpeg's log how many RTP packets never came. For one thread; enter it around each read.

    PyAV's log hook is one for the process: every line of the level WARNING and above then takes the GIL. It is safe
    here because PyAV's decoders thread within a picture: no decoder thread is left to log while one is freed.

    Args:
        rtp: False for inputs that have no RTP: nothing is hooked.
    """

    def __init__(self, rtp: bool) -> None:
        self._capture: Capture | None = None
        if not rtp:
            return
        import av.logging

        if av.logging.get_level() is None:
            # What is not captured would go to Python's logging, line by line.
            logging.getLogger("libav").setLevel(logging.CRITICAL + 1)
            av.logging.set_skip_repeated(False)
            av.logging.set_level(av.logging.WARNING)
        self._capture = av.logging.Capture(local=True)

    def __enter__(self) -> None:
        if self._capture is not None:
            self._capture.__enter__()

    def __exit__(self, *_: object) -> None:
        if self._capture is not None:
            self._capture.__exit__(None, None, None)

    def take(self) -> int:
        """RTP packets lost since the last call."""
        if self._capture is None or not self._capture.logs:
            return 0
        found = (_MISSED.match(line) for _, _, line in self._capture.logs)
        lost = sum(int(match[1]) for match in found if match)
        self._capture.logs.clear()
        return lost


class Quarantine:
    """Follows one connection, packet by packet as they are read and picture by picture as they come out."""

    def __init__(self) -> None:
        self._tainted = False
        self._holding = False
        self._started = False
        self._hurt_ns = 0
        self._no_release_before_ns = 0

    def opened(self, now_ns: int, waited_ns: int, lost: int) -> None:
        """The connection is open; `lost` RTP packets went missing in the `waited_ns` that probing took.

        Which of the packets that probing has buffered are damaged is unknown, so no key frame among them releases.
        They are handed out faster than they came, hence in less time than probing took.
        """
        if lost:
            self._tainted = True
            self._hurt_ns = now_ns
            self._no_release_before_ns = now_ns + waited_ns

    def packet(self, *, key: bool, damaged: bool, now_ns: int) -> bool:
        """True where the packet's picture is damaged or predicted from one that is.

        Args:
            key: it holds a key frame.
            damaged: something is missing in it or before it.
            now_ns: monotonic time of reading.
        """
        if damaged:
            self._tainted = True
            self._hurt_ns = now_ns
        elif self._tainted and ((key and now_ns >= self._no_release_before_ns) or now_ns - self._hurt_ns > HOLD_NS):
            self._tainted = False
        return self._tainted

    def refused(self, now_ns: int) -> None:
        """The decoder refused a packet. Before the first picture that is no loss but a start between key frames."""
        if self._started:
            self._tainted = True
            self._hurt_ns = now_ns

    def frame(self, *, tainted: bool, corrupt: bool, key: bool, now_ns: int) -> bool:
        """True where the picture, in presentation order, is to be withheld.

        Pictures that precede a key frame in presentation but follow it in the stream (open GOP) are predicted from
        both sides of it: only the key frame itself, and a sound one, ends the quarantine.

        Args:
            tainted: what `packet` said of its packet.
            corrupt: the decoder's own mark.
            key: it is a key frame.
            now_ns: monotonic time.
        """
        self._started = True
        if tainted or corrupt:
            self._holding = True
            if corrupt:
                self._hurt_ns = now_ns
        elif self._holding and (key or now_ns - self._hurt_ns > HOLD_NS):
            self._holding = False
        return self._holding
