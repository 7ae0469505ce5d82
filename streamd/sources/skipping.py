"""Which packets need not be decoded if `max_fps` is far below the camera's rate.

Only pictures that no other picture is predicted from can be skipped: non-reference pictures (most B-pictures, the top
layer of temporal scalability), or all pictures between two key frames. H.264 marks the former with nal_ref_idc 0 (ITU-T
H.264, 7.4.1), H.265 with an even type below 16, which is guaranteed within its temporal layer only (ITU-T H.265,
7.4.2.2). FFmpeg's `skip_frame` does the same inside the decoder; here it is known, and counted, per packet.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.codeccontext import VideoCodecContext
    from av.video.frame import VideoFrame

    from streamd.sources.hardware import HardwareDecoder
    from streamd.sources.pacing import RateLimit

Level = Literal["all", "references", "keys"]
_GROUPS = 4
"""Number of groups of pictures over which rates are measured."""
_TOLERANCE = 0.97
"""Tolerance: at 24.9 frames/s, every fifth picture counts as 5 frames/s."""
_LONGEST_NS = 60_000_000_000
_HEAD = 1024
"""Bytes of a packet in which its first slice begins, except for rare packets."""
_START = b"\x00\x00\x01"


def nal_length_size(codec: str, extradata: bytes | None) -> int:
    """Bytes of the length in front of each NAL unit in MP4, Matroska and FLV; 0 where start codes are (Annex B).

    Args:
        codec: h264 or hevc.
        extradata: of the codec context: an avcC or hvcC box begins with its version, 1.
    """
    at = 4 if codec == "h264" else 21
    if not extradata or len(extradata) <= at or extradata[0] != 1:
        return 0
    return (extradata[at] & 3) + 1


def first_slice(codec: str, data: bytes, length_size: int) -> tuple[int, int] | None:
    """Type and second value of the first NAL unit with a slice: nal_ref_idc in H.264, temporal layer in H.265.

    Args:
        codec: h264 or hevc.
        data: a packet, or its beginning.
        length_size: see `nal_length_size`.

    Returns:
        None if `data` contains no slice.
    """
    at, end = 0, len(data)
    while True:
        if length_size:
            unit = at + length_size
            at = unit + int.from_bytes(data[at:unit], "big")
        else:
            found = data.find(_START, at)
            unit = at = found + 3
            if found < 0:
                return None
        if unit + 1 >= end:
            return None
        head = data[unit]
        if codec == "h264":
            if 1 <= head & 31 <= 5:
                return head & 31, head >> 5 & 3
        elif head >> 1 & 63 < 32:
            return head >> 1 & 63, max(0, (data[unit + 1] & 7) - 1)


class PacketSkipper:
    """Chooses the packets of one connection. For one thread.

    What is skipped changes at key frames only, based on the rates of the last groups of pictures. At least `max_fps`
    pictures per second always remain.

    Args:
        codec: FFmpeg's name of the codec.
        extradata: of its codec context.
        limit: chooses among key frames here, and among decoded pictures elsewhere.
    """

    def __init__(self, codec: str, extradata: bytes | None, limit: RateLimit) -> None:
        self.level: Level = "all"
        self._codec = codec
        self._parsed = codec in ("h264", "hevc")
        self._length_size = nal_length_size(codec, extradata) if self._parsed else 0
        self._groups: deque[tuple[int, int, int]] = deque(maxlen=_GROUPS)
        """Nanoseconds, packets and references of each."""
        self._began_ns: int | None = None
        self._packets = self._references = 0
        self._top_layer = 0
        self._limit = limit

    def skip(self, packet: Packet[Any], time_ns: int) -> bool:
        """True if `packet` should be skipped. If only key frames are decoded, this also selects among them; otherwise
        more pictures than requested may remain.

        Args:
            packet: of the video, not empty.
            time_ns: its time stamp, or its arrival where it has none.
        """
        key = packet.is_keyframe
        if key:
            self._begin(time_ns)
        reference = key or not self._parsed or self._is_reference(packet)
        self._packets += 1
        self._references += reference
        if self.level == "keys":
            return not (key and self._limit.admit(time_ns))
        return self.level == "references" and not reference

    def _is_reference(self, packet: Packet[Any]) -> bool:
        view = memoryview(packet)
        found = first_slice(self._codec, bytes(view[:_HEAD]), self._length_size)
        if found is None and len(view) > _HEAD:
            found = first_slice(self._codec, bytes(view), self._length_size)
        if found is None:
            return True
        kind, value = found
        if self._codec == "h264":
            return value > 0
        self._top_layer = max(self._top_layer, value)
        return kind >= 16 or kind % 2 == 1 or value < self._top_layer

    def _begin(self, now_ns: int) -> None:
        """Decides, at the start of a group of pictures, what is decoded of it."""
        if self._began_ns is not None and 0 < now_ns - self._began_ns <= _LONGEST_NS:
            self._groups.append((now_ns - self._began_ns, self._packets, self._references))
        self._began_ns, self._packets, self._references = now_ns, 0, 0
        if len(self._groups) < 2:
            return
        seconds = sum(group[0] for group in self._groups) / 1e9
        wanted = self._limit.max_fps * _TOLERANCE
        packets, references = (sum(group[k] for group in self._groups) for k in (1, 2))
        if len(self._groups) / seconds >= wanted:
            self.level = "keys"
        elif references < packets and references / seconds >= wanted:
            self.level = "references"
        else:
            self.level = "all"


def held_back(natives: list[VideoFrame], number: int, decoder: VideoCodecContext | HardwareDecoder) -> list[VideoFrame]:
    """Key frames that a decoder would output seconds later, together with later ones, as it waits to reorder them.

    Args:
        natives: what it has given out for the last packet.
        number: of that packet.
        decoder: gave them out.
    """
    carried: Any = natives[-1].opaque if natives else None
    if carried and carried[-1] == number:
        return []
    return drained(decoder)


def drained(decoder: VideoCodecContext | HardwareDecoder) -> list[VideoFrame]:
    """What a decoder holds. It begins anew afterwards, with packets that need not follow."""
    held: list[VideoFrame] = decoder.decode(None)
    decoder.flush_buffers()
    return held
