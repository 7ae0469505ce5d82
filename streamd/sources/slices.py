"""Joins the slices of one picture that come as packets of their own.

FFmpeg ends a picture where parameter sets or a delimiter follow a slice (ITU-T H.264, 7.4.1.2.3; H.265, 7.4.2.4.4).
Some senders put them in front of every slice of a key frame (GStreamer's payloaders with `config-interval=-1`), or send
every slice as if it were a picture. Such a packet begins with a slice that is not the first of its picture, and has the
time stamp of the packet before. Decoded on its own it gives a damaged picture, from which all later ones are predicted.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from streamd.sources.skipping import nal_length_size

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.codeccontext import VideoCodecContext

SLICED = ("h264", "hevc")
"""Codecs whose pictures may come in several packets."""
_START = b"\x00\x00\x01"
_HEAD = 1024
"""Bytes of a packet in which its first slice begins, except for rare packets."""


def slice_at(codec: str, data: bytes, length_size: int, at: int = 0) -> tuple[int, bool] | None:
    """Where the next slice of a packet begins, and whether it is the first of its picture.

    Args:
        codec: h264 or hevc.
        data: a packet, or its beginning.
        length_size: see `skipping.nal_length_size`.
        at: where to begin.

    Returns:
        Position of its start code or length; None if `data` has no further slice.
    """
    end = len(data)
    while True:
        if length_size:
            begin, unit = at, at + length_size
            at = unit + int.from_bytes(data[begin:unit], "big")
        else:
            begin = data.find(_START, at)
            unit = at = begin + 3
            if begin < 0:
                return None
        if unit + 2 >= end:
            return None
        # first_mb_in_slice is 0, an Exp-Golomb code of one bit; first_slice_segment_in_pic_flag is 1.
        if codec == "h264":
            if data[unit] & 31 in (1, 2, 5):
                return begin, data[unit + 1] >= 0x80
        elif data[unit] >> 1 & 63 < 32:
            return begin, data[unit + 2] >= 0x80


class SliceJoiner:
    """Makes whole pictures of the packets of one connection. For the thread that demuxes.

    Whether a picture is whole is known when the next packet comes. Therefore packets are held back where parts have
    been seen: key frames, others, or both. Otherwise only the first key frame is: its successor is there already, since
    FFmpeg has probed it.

    Args:
        context: of the video, whose codec is one of `SLICED`.
    """

    def __init__(self, context: VideoCodecContext) -> None:
        self._codec = context.codec.canonical_name  # a decoder may have a name of its own
        self._length_size = nal_length_size(self._codec, context.extradata)
        self._pieces: list[Packet[Any]] = []
        """Held back, and what continues it."""
        self._read_ns = (0, 0)
        self._keys_split = self._others_split = False
        self._tries_key = True
        """No key frame was held back yet."""
        self._tries_other = True
        self._stamp: int | None = None
        """Of the latest packet."""

    def put(self, packet: Packet[Any]) -> tuple[Packet[Any], ...]:
        """Takes the next packet, which may be the empty one at the end.

        Returns:
            What is whole now. The `opaque` of a packet that was held back is when it was read: monotonic and Unix time,
            nanoseconds.
        """
        key = packet.is_keyframe
        if packet.size and self._continues(packet):
            self._keys_split = True
            self._others_split |= not key
            if self._pieces:
                piece, rest = self._cut(packet)
                self._pieces.append(piece)
                return self.put(rest) if rest is not None else ()
            packet.is_corrupt = True  # the beginning of its picture has gone to the decoder
        self._stamp = packet.pts if packet.pts is not None else self._stamp
        whole = self.flush()
        if key:
            hold, self._tries_key = self._keys_split or self._tries_key, False
        else:
            hold = self._others_split or (self._keys_split and self._tries_other)
            self._tries_other &= not hold
        if not (hold and packet.size):
            return (*whole, packet) if whole else (packet,)
        self._pieces.append(packet)
        self._read_ns = time.monotonic_ns(), time.time_ns()
        return whole

    def flush(self) -> tuple[Packet[Any], ...]:
        """What is held back: nothing more of it comes."""
        if not self._pieces:
            return ()
        pieces, self._pieces = self._pieces, []
        whole = self._join(pieces) if len(pieces) > 1 else pieces[0]
        whole.opaque = self._read_ns
        return (whole,)

    def _continues(self, packet: Packet[Any]) -> bool:
        """Whether it goes on with the picture of the packet before it."""
        # A picture whose first slice was lost, or whose slices come in any order, has a time stamp of its own.
        if packet.pts is not None and self._stamp is not None and packet.pts != self._stamp:
            return False
        view = memoryview(packet)
        found = slice_at(self._codec, bytes(view[:_HEAD]), self._length_size)
        if found is None and len(view) > _HEAD:
            found = slice_at(self._codec, bytes(view), self._length_size)
        return found is not None and not found[1]

    def _cut(self, packet: Packet[Any]) -> tuple[Packet[Any], Packet[Any] | None]:
        """FFmpeg's parser of H.265 leaves the picture that follows such a part in the same packet."""
        if self._length_size:
            return packet, None  # no parser
        data = bytes(packet)
        found = slice_at(self._codec, data, 0)
        while found is not None and not found[1]:
            found = slice_at(self._codec, data, 0, found[0] + len(_START))
        if found is None:
            return packet, None
        # Parameter sets in front of it stay where they are: they are the same.
        rest = self.cut(data[found[0] :], packet)
        rest.is_keyframe = self._codec == "hevc" and 16 <= data[found[0] + 3] >> 1 & 63 <= 23
        piece = self.cut(data[: found[0]], packet)
        piece.pts, piece.dts, piece.is_keyframe = packet.pts, packet.dts, packet.is_keyframe
        return piece, rest

    @staticmethod
    def cut(data: bytes, like: Packet[Any]) -> Packet[Any]:
        """A packet with a part of another's data, without time stamps."""
        import av

        made = av.Packet(data)
        made.stream, made.time_base, made.duration = like.stream, like.time_base, like.duration
        made.is_corrupt = like.is_corrupt
        return made

    def _join(self, pieces: list[Packet[Any]]) -> Packet[Any]:
        first = pieces[0]
        data = bytearray(first)
        for piece in pieces[1:]:
            more = bytes(piece)
            found = slice_at(self._codec, more, self._length_size)
            # The picture's own parameter sets are those in front of its first slice.
            data += more[found[0] if found is not None else 0 :]
        whole = self.cut(bytes(data), first)
        whole.pts = next((piece.pts for piece in pieces if piece.pts is not None), None)
        whole.dts = next((piece.dts for piece in pieces if piece.dts is not None), None)
        whole.is_keyframe = first.is_keyframe
        whole.is_corrupt = any(piece.is_corrupt for piece in pieces)
        for each in first.iter_sidedata():
            whole.set_sidedata(each)
        return whole
