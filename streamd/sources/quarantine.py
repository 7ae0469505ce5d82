"""Identifies pictures that must not pass as intact: those after a loss, up to the next clean key frame.

A damaged picture corrupts all pictures predicted from it, and no decoder marks those. There are four signs of damage:
the decoder's own flags (software decoders of H.264 and older codecs, which know what they concealed), packets that the
demuxer marks or the decoder rejects, lost RTP packets, and what the decoder of JPEG says of a picture that is cut off
or overwritten. Loss is the only sign for H.265 and for GPU decoders, which conceal silently. FFmpeg reports it, and
damaged JPEGs, in its log only.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av.logging import Capture

HOLD_NS = 30_000_000_000
"""How long pictures are withheld without a new sign of damage: some cameras never send a second key frame."""

_MISSED = re.compile(r"RTP: missed (\d+) packets")
_BROKEN_JPEG = re.compile(r"overread \d|error (?:count|y=|dc)|mjpeg_decode_dc: bad vlc|bad vlc")
"""Not all errors: that it cannot read a camera's own fields, the decoder says, too."""


class _LogListener:
    """Collects lines of FFmpeg's log. For one thread; enter it around each call.

    PyAV's log hook is process-wide: every line of level WARNING and above then takes the GIL. This is safe because
    PyAV's decoders use slice threading: no decoder thread can still be logging while a decoder is freed.

    Args:
        wanted: False: nothing is hooked.
    """

    def __init__(self, wanted: bool) -> None:
        self._capture: Capture | None = None
        if not wanted:
            return
        import av
        import av.logging

        if av.logging.get_level() is None:
            # Lines that are not captured would go to Python's logging.
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

    def _lines(self) -> Iterator[str]:
        """The lines since the last call; they are forgotten."""
        if self._capture is not None and self._capture.logs:
            lines = [line for _, _, line in self._capture.logs]
            self._capture.logs.clear()
            yield from lines


class PacketLossListener(_LogListener):
    """Reads the number of lost RTP packets from FFmpeg's log, around each read.

    Args:
        rtp: False for inputs without RTP.
    """

    def __init__(self, rtp: bool) -> None:
        super().__init__(rtp)

    def take(self) -> int:
        """RTP packets lost since the last call."""
        if self._capture is None or not self._capture.logs:
            return 0
        return sum(int(match[1]) for line in self._lines() if (match := _MISSED.match(line)) is not None)


class JpegListener(_LogListener):
    """Reads from FFmpeg's log whether a JPEG is damaged, around each decoding."""

    def __init__(self) -> None:
        super().__init__(True)

    def __enter__(self) -> None:
        if self._capture is not None:
            self._capture.logs.clear()  # of a packet without a picture
            self._capture.__enter__()

    def damaged(self) -> bool:
        """Whether the picture that was decoded last is cut off or overwritten."""
        capture = self._capture
        return capture is not None and any(_BROKEN_JPEG.match(line) for _, _, line in capture.logs)


class Quarantine:
    """Tracks one connection: packets in the order of reading, and pictures in the order of output."""

    def __init__(self) -> None:
        self._tainted = False
        self._holding = False
        self._started = False
        self._hurt_ns = 0
        self._no_release_before_ns = 0

    def opened(self, now_ns: int, waited_ns: int, lost: int) -> None:
        """The connection is open; `lost` RTP packets were lost in the `waited_ns` that probing took.

        Which of the packets buffered by probing are damaged is unknown, so no key frame among them ends the quarantine.
        They are returned faster than they arrived, hence in less time than probing took.
        """
        if lost:
            self._tainted = True
            self._hurt_ns = now_ns
            self._no_release_before_ns = now_ns + waited_ns

    def packet(self, *, key: bool, damaged: bool, now_ns: int) -> bool:
        """True if the packet's picture is damaged or predicted from a damaged one.

        Args:
            key: it contains a key frame.
            damaged: data is missing in it or before it.
            now_ns: monotonic time of reading.
        """
        if damaged:
            self._tainted = True
            self._hurt_ns = now_ns
        elif self._tainted and ((key and now_ns >= self._no_release_before_ns) or now_ns - self._hurt_ns > HOLD_NS):
            self._tainted = False
        return self._tainted

    def refused(self, now_ns: int) -> None:
        """The decoder rejected a packet. Before the first picture this is no loss but a start between key frames."""
        if self._started:
            self._tainted = True
            self._hurt_ns = now_ns

    def frame(self, *, tainted: bool, corrupt: bool, key: bool, now_ns: int) -> bool:
        """True if the picture, in presentation order, must be withheld.

        Pictures that precede a key frame in presentation but follow it in the stream (open GOP) are predicted from both
        sides of it: only an intact key frame itself ends the quarantine.

        Args:
            tainted: what `packet` returned for its packet.
            corrupt: the decoder's own flag.
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
