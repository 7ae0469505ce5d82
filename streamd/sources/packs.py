"""Where a program stream (ISO 13818-1, 2.5; the .mpg, .vob and .ps files of recorders) goes on with another codec.

Its map, if it has one, is not taken on by FFmpeg for a track that it knows. Packets of the video that begin with a
picture's parameters tell the codec themselves.
"""

from __future__ import annotations

import re

from streamd.sources.recording import codec_of
from streamd.sources.search import CHUNK, PartSearch

PACK = b"\x00\x00\x01\xba"
_VIDEO = re.compile(rb"\x00\x00\x01[\xe0-\xef]")
_TOLD = 1024
"""Bytes in which a picture's parameters begin."""
_STARTS = (b"\x00\x00\x01", b"\x00\x00\x00\x01")


class PackSearch(PartSearch):
    """Program streams, of one video or of several with the same codec."""

    _codec = ""
    """FFmpeg's name of that of the present part."""

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
                pack = data.rfind(PACK, 0, at)
                self.next_at = self.seen + (pack if pack >= 0 else at)
                return
            self._codec = codec
        self.at_end = len(data) < CHUNK
        # The next piece has the pack of a packet that is not whole here.
        pack = data.rfind(PACK, 0, max(0, len(data) - 2 * _TOLD))
        self.seen += pack if pack > 0 and not self.at_end else max(0, len(data) - _TOLD)


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
