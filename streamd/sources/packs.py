"""Where a program stream (ISO 13818-1, 2.5; the .mpg, .vob and .ps files of recorders) goes on with another codec.

Its map, if it has one, is not taken on by FFmpeg for a track that it knows. Packets of the video that begin with a
picture's parameters tell the codec themselves.
"""

from __future__ import annotations

import re

from streamd.sources.recording import codec_of
from streamd.sources.search import AHEAD, CHUNK, NEVER, PartSearch

PACK = b"\x00\x00\x01\xba"
_SYSTEM = b"\x00\x00\x01\xbb"
_VIDEO = re.compile(rb"\x00\x00\x01[\xe0-\xef]")
_TOLD = 1024
"""Bytes in which a picture's parameters begin."""
_CLOCK_OR_VIDEO = re.compile(rb"\x00\x00\x01[\xba\xe0-\xef]")
_STARTS = (b"\x00\x00\x01", b"\x00\x00\x00\x01")


class PackSearch(PartSearch):
    """Program streams. One with several videos at a time is a part by itself."""

    _codec = ""
    """FFmpeg's name of that of the present part."""
    _track = 0
    """Of the packets that have told it."""

    def start(self, begin: int) -> int:
        """See `PartSearch.start`."""
        self._restart(begin)
        self._codec = ""
        self.look(begin)
        return self.next_at or 0

    def _step(self) -> None:
        data = self._read(self.seen, CHUNK)
        for found in _VIDEO.finditer(data):
            at = found.start()
            if at + 2 * _TOLD > len(data) and len(data) == CHUNK:
                break
            begin = _payload_at(data, at + 6)
            # Only what begins with a start code begins with a picture.
            if not data.startswith(_STARTS, begin):
                continue
            codec, ahead = codec_of(data[begin : begin + _TOLD])
            if not codec or ahead > 16:
                continue
            if self._codec and codec != self._codec:
                pack = max(data.rfind(PACK, 0, at), 0)
                if self._goes_on_beside(self.seen + pack, at - pack, data[at + 3]):
                    self.seen = NEVER
                else:
                    # Behind the begin: damage may leave two codecs in one pack.
                    self.next_at = self.seen + (pack if self.seen + pack > self.begin else at)
                return
            self._codec, self._track = codec, data[at + 3]
        self.at_end = len(data) < CHUNK
        # The next piece has the pack of a packet that is not whole here.
        pack = data.rfind(PACK, 0, max(0, len(data) - 2 * _TOLD))
        self.seen += pack if pack > 0 and not self.at_end else max(0, len(data) - _TOLD)

    def _goes_on_beside(self, pack: int, at: int, track: int) -> bool:
        """Whether the present video goes on behind a packet of another one, while the clock does.

        Args:
            pack: where that of the packet begins.
            at: where the packet does, from there.
            track: of the packet.
        """
        if track == self._track:
            return False
        data = self._read(pack, at + AHEAD)
        clock = -1
        for found in _CLOCK_OR_VIDEO.finditer(data):
            begin = found.start()
            if data[begin + 3] != PACK[3]:
                if begin > at and data[begin + 3] == self._track:
                    return True
            elif (now := _clock_at(data, begin + 4)) < clock or (now == clock and _is_first(data, begin)):
                return False
            else:
                clock = now
        return False


def _is_first(data: bytes, pack: int) -> bool:
    """Whether it may be the first one of a stream, which has a system header."""
    return data.find(_SYSTEM, pack + 12, pack + 14 + 7 + len(_SYSTEM)) > 0


def _clock_at(data: bytes, at: int) -> int:
    """A pack's system_clock_reference in units of 90 kHz (ISO 13818-1, 2.5.3.3; ISO 11172-1, 2.4.3.2). It has a marker
    bit behind its upper 3 and 15 bits."""
    bits = int.from_bytes(data[at : at + 6].ljust(6, b"\0"), "big")
    upper = 43 if bits >> 46 == 1 else 41
    shifts = (upper, 7), (upper - 16, 0x7FFF), (upper - 32, 0x7FFF)
    high, middle, low = (bits >> shift & mask for shift, mask in shifts)
    return high << 30 | middle << 15 | low


def _payload_at(data: bytes, at: int) -> int:
    """Where the payload of a packet begins whose length is before a byte."""
    if b"\x80" <= data[at : at + 1] < b"\xc0":
        return at + 3 + (data[at + 2] if at + 2 < len(data) else 0)
    # MPEG-1 (ISO 11172-1, 2.4.3.3): stuffing, the size of a buffer, time stamps.
    while data[at : at + 1] == b"\xff":
        at += 1
    if data[at : at + 1] >= b"\x40":
        at += 2
    return at + {2: 5, 3: 10}.get(data[at] >> 4 if at < len(data) else 0, 1)
