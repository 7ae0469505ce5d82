"""A clip as the RTP payloads of a camera: H.264 according to RFC 6184, H.265 according to RFC 7798."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

CLOCK = 90_000
"""RTP ticks a second."""
MTU = 1400
"""Largest RTP payload in bytes."""
_SETS = {"h264": (7, 8), "hevc": (32, 33, 34)}
_DELIMITERS = {"h264": (9,), "hevc": (35,)}
_SDP_NAMES = {32: "vps", 33: "sps", 34: "pps"}


@dataclass(slots=True, frozen=True)
class Picture:
    """One coded picture."""

    due: int
    """When it is sent, in ticks from the clip's start (its decoding time)."""
    stamp: int
    """Its presentation time, in ticks from the clip's start; the RTP time stamp."""
    key: bool
    payloads: tuple[bytes, ...]
    """RTP payloads: parameter sets as one aggregate (STAP-A, AP), single NAL units, fragments (FU-A, FU)."""


class Clip:
    """A clip that a camera can send.

    Args:
        path: H.264 or H.265 in any container FFmpeg reads.

    Raises:
        ValueError: no picture in it, or another codec.
    """

    def __init__(self, path: str | Path) -> None:
        import av

        pictures: list[Picture] = []
        sets: dict[bytes, None] = {}
        with av.open(str(path)) as container:
            stream: Any = container.streams.video[0]
            self.codec: str = stream.codec_context.name
            if self.codec not in _SETS:
                raise ValueError(f"{path}: is {self.codec}; expected h264 or hevc")
            self.width: int = stream.width
            self.height: int = stream.height
            self.fps = float(stream.average_rate or 25)
            convert = av.bitstream.BitStreamFilterContext(f"{self.codec}_mp4toannexb", stream)
            first: int | None = None
            for packet in container.demux(stream):
                for p in convert.filter(packet) if packet.size else ():
                    assert p.dts is not None
                    assert p.pts is not None
                    due = int(Fraction(p.dts) * stream.time_base * CLOCK)
                    stamp = int(Fraction(p.pts) * stream.time_base * CLOCK)
                    first = due if first is None else first
                    units = list(_split(bytes(p)))
                    own = [u for u in units if self._type(u) in _SETS[self.codec]]
                    sets |= dict.fromkeys(own)
                    other = _SETS[self.codec] + _DELIMITERS[self.codec]
                    rest = [u for u in units if self._type(u) not in other]
                    payloads = [self._aggregate(list(sets))] if p.is_keyframe and sets else []
                    for unit in rest:
                        payloads += self._fragments(unit)
                    pictures.append(Picture(due - first, stamp - first, p.is_keyframe, tuple(payloads)))
        if not pictures:
            raise ValueError(f"{path}: has no picture")
        self.pictures = pictures
        self.delay = max(p.stamp - p.due for p in pictures)
        """Ticks from taking a picture to sending it: the largest delay by reordering."""
        self.sets = list(sets)
        """Parameter sets, in the order of their first use."""
        self.duration = pictures[-1].due + round(CLOCK / self.fps)
        """Ticks from one start to the next where it is played in a loop."""

    def _type(self, unit: bytes) -> int:
        return unit[0] & 31 if self.codec == "h264" else unit[0] >> 1 & 63

    def _aggregate(self, units: list[bytes]) -> bytes:
        head = bytes([0x60 | 24]) if self.codec == "h264" else bytes([48 << 1, 1])
        return head + b"".join(len(u).to_bytes(2, "big") + u for u in units)

    def _fragments(self, unit: bytes) -> Iterator[bytes]:
        if len(unit) <= MTU:
            yield unit
            return
        size = 1 if self.codec == "h264" else 2
        head = bytes([unit[0] & 0xE0 | 28]) if size == 1 else bytes([unit[0] & 0x81 | 49 << 1, unit[1]])
        step = MTU - size - 1
        for at in range(size, len(unit), step):
            edge = (0x80 if at == size else 0) | (0x40 if at + step >= len(unit) else 0)
            yield head + bytes([edge | self._type(unit)]) + unit[at : at + step]

    def media(self) -> str:
        """The lines of SDP that describe it."""
        coded = [base64.b64encode(s).decode() for s in self.sets]
        if self.codec == "h264":
            level = self.sets[0][1:4].hex()
            parameters = f"packetization-mode=1;profile-level-id={level};sprop-parameter-sets={','.join(coded)}"
        else:
            pairs = zip(self.sets, coded, strict=True)
            parameters = ";".join(f"sprop-{_SDP_NAMES[self._type(s)]}={text}" for s, text in pairs)
        name = {"h264": "H264", "hevc": "H265"}[self.codec]
        return (
            f"m=video 0 RTP/AVP 96\r\na=rtpmap:96 {name}/{CLOCK}\r\na=fmtp:96 {parameters}\r\n"
            f"a=framerate:{self.fps:g}\r\na=control:video\r\n"
        )


def _split(data: bytes) -> Iterator[bytes]:
    """The NAL units of an Annex B byte stream."""
    start = data.find(b"\0\0\1")
    while start >= 0:
        end = data.find(b"\0\0\1", start + 3)
        unit = data[start + 3 :] if end < 0 else data[start + 3 : end].rstrip(b"\0")
        if unit:
            yield unit
        start = end
