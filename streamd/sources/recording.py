"""Hands a demuxer's packets to a stream's packet ring, with what a muxer has to know of them.

A new part begins where the parameters change in mid-stream. Cameras and encoders repeat them at key frames: parameter
sets in H.264 (ITU-T H.264, 7.4.1) and H.265 (ITU-T H.265, 7.4.2.2), the sequence header of AV1 (specification, 5.5) and
of MPEG-4 (ISO 14496-2, 6.2.3), the frame header of a JPEG (ITU-T T.81, B.2.2).
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from streamd.flow.packets import PacketHead, PacketSink, SoundHead
from streamd.security.redact import redact
from streamd.sources.skipping import nal_length_size

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.packet import Packet
    from av.video.stream import VideoStream

_RAW = {"h264": "h264", "hevc": "hevc", "mjpeg": "mjpeg", "mpeg4": "m4v"}
"""Formats in which a key frame alone tells its parameters."""
_START = b"\x00\x00\x01"
_TELLING = {"h264": "h264", "hevc": "hevc", "mpeg2video": "mpegvideo"}
"""Codecs that take turns in a transport stream, where a demuxer tells nobody; their key frames tell them apart."""
_FORMATS = _TELLING | {"mpeg4": "m4v"}
"""Of what they may change to."""
_MOST_UNITS = 16
DELIMITER = 8
"""Bytes of an access unit delimiter, at most."""


def parameters(codec: str, data: bytes, length_size: int = 0) -> bytes:
    """The parameters that a key frame repeats; equal as long as nothing changes. Empty if there are none.

    Args:
        codec: FFmpeg's name.
        data: the packet.
        length_size: see `skipping.nal_length_size`; such streams keep their parameters elsewhere.
    """
    if codec in ("h264", "hevc"):
        return b"" if length_size else _parameter_sets(codec, data)
    if codec == "av1":
        return _sequence_header(data)
    if codec == "mpeg4":
        return _video_object_layer(data)
    if codec == "mjpeg":
        return _frame_size(data)
    return b""


def codec_of(data: bytes) -> tuple[str, int]:
    """What a key frame of a transport stream is (`h264`, `hevc`, `mpeg2video`, `mpeg4`; empty if its parameters are not
    there), and where they begin.

    A header of one codec is never one of another: bit 7 is forbidden in H.264 and H.265, where MPEG-2 and MPEG-4 have
    their sequence headers; H.265's parameter sets would be data partitions in H.264, H.264's belong to layers from 32
    on in H.265.
    """
    at = data.find(_START)
    for _ in range(_MOST_UNITS):
        if at < 0 or at + 4 >= len(data):
            break
        first, second = data[at + 3], data[at + 4]
        if first == 0xB3:
            # MPEG-4 has the same code for the head of a group, behind which comes a picture.
            following = data.find(_START, at + 3) + 3
            return ("mpeg4" if data[following : following + 1] == b"\xb6" else "mpeg2video"), at
        if first == 0xB0:
            return "mpeg4", at
        if first in (0x40, 0x42) and second == 1:
            return "hevc", at
        if first in (0x27, 0x47, 0x67):
            return "h264", at
        at = data.find(_START, at + 3)
    return "", 0


def _parameter_sets(codec: str, data: bytes) -> bytes:
    """SPS and PPS (and VPS), in the order of their numbers, each with a start code; empty without an SPS."""
    found: list[bytes] = []
    sps = False
    at = data.find(_START)
    while at >= 0 and at + 3 < len(data):
        unit = at + 3
        head = data[unit]
        kind = head & 31 if codec == "h264" else head >> 1 & 63
        if kind in ((1, 2, 5) if codec == "h264" else range(32)):
            break  # slices: parameters precede them
        at = data.find(_START, unit)
        if kind in ((7, 8) if codec == "h264" else (32, 33, 34)):
            sps |= kind == (7 if codec == "h264" else 33)
            found.append(_START + data[unit : at if at >= 0 else len(data)].rstrip(b"\x00"))
    return b"".join(dict.fromkeys(found)) if sps else b""


def _sequence_header(data: bytes) -> bytes:
    at = 0
    while at < len(data):
        head = data[at]
        kind, at = head >> 3 & 15, at + (2 if head & 4 else 1)
        if not head & 2:
            return b""
        size = shift = 0
        while at < len(data):
            byte = data[at]
            size |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if not byte & 128 or shift > 28:
                break
        if kind == 1:
            return data[at : at + size]
        at += size
    return b""


def _video_object_layer(data: bytes) -> bytes:
    at = data.find(_START)
    while at >= 0 and at + 3 < len(data):
        end = data.find(_START, at + 3)
        if 0x20 <= data[at + 3] <= 0x2F:
            return data[at : end if end >= 0 else len(data)]
        at = end
    return b""


def _frame_size(data: bytes) -> bytes:
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        kind = data[at + 1]
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            return data[at + 5 : at + 9]
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return b""


_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)
"""Of ISO 14496-3, table 1.18."""


def sound_head(stream: AudioStream) -> tuple[SoundHead | None, bool]:
    """What a muxer has to know of a stream's sound, and whether its packets have an ADTS header to take off.

    Returns:
        None if FFmpeg cannot describe it.
    """
    import av

    context, base = stream.codec_context, stream.time_base
    if base is None or not context.sample_rate or not context.channels:
        return None, False
    codec = context.codec.canonical_name
    adts = codec == "aac" and not context.extradata
    memory = io.BytesIO()
    try:
        with av.open(memory, "w", format="nut") as out:
            copy = out.add_stream_from_template(stream, opaque=True)
            if adts:
                copy.codec_context.extradata = _audio_config(context.sample_rate, context.channels, context.profile)
            dummy = av.Packet(bytes(16))  # a file without packets cannot be opened
            dummy.stream, dummy.pts, dummy.dts, dummy.is_keyframe = copy, 0, 0, True
            out.mux(dummy)
    except Exception:  # noqa: BLE001 - whatever FFmpeg cannot store must not cost the pictures
        return None, False
    return SoundHead(codec, (base.numerator, base.denominator), memory.getvalue()), adts


def _audio_config(rate: int, channels: int, profile: str | None) -> bytes:
    """AudioSpecificConfig (ISO 14496-3, 1.6.2.1) of AAC-LC; its high-efficiency kinds are AAC-LC of half the rate."""
    efficient = "HE" in (profile or "")
    rate = rate // 2 if efficient else rate
    channels = 1 if efficient and "v2" in (profile or "") else channels
    if rate not in _RATES or channels not in (1, 2, 3, 4, 5, 6, 8):
        raise ValueError(f"AAC of {rate} Hz and {channels} channels")
    return (2 << 11 | _RATES.index(rate) << 7 | (7 if channels == 8 else channels) << 3).to_bytes(2, "big")


class PacketFeed:
    """What one source puts into its stream's ring. For the thread that demuxes.

    Args:
        into: the ring, or the way to it.
    """

    def __init__(self, into: PacketSink) -> None:
        self._into = into
        self._stream: VideoStream | None = None
        self._identity: tuple[Any, ...] = ()
        self._codec, self._length_size = "", 0
        self._parameters = b""
        self._begun = False
        self._other = False
        """The packets are of another codec than the stream was opened with."""
        self._live = False
        self._follows = False
        """The same source has had another stream before."""
        self._sound: SoundHead | None = None
        self._adts = False
        """The sound's packets begin with a header, which no file but a transport stream has."""

    def opened(self, stream: VideoStream, *, live: bool, sound: AudioStream | None = None) -> None:
        """The following packets are of this stream. The same part continues if its parameters are the same.

        Args:
            stream: the pictures.
            live: see `PacketHead.live`.
            sound: where it is to be recorded.
        """
        context = stream.codec_context
        self._follows = self._stream is not None
        self._stream, self._live = stream, live
        self._codec = context.codec.canonical_name  # a decoder may have a name of its own
        self._length_size = nal_length_size(self._codec, context.extradata)
        self._sound, self._adts = sound_head(sound) if sound is not None else (None, False)
        identity = (self._codec, context.extradata, stream.width, stream.height, stream.time_base, self._sound)
        if identity != self._identity or self._other:
            self._identity, self._begun, self._parameters = identity, False, b""
        self._other = False

    def put(self, packet: Packet[Any], captured_ns: int, wall_ns: int) -> None:
        """Takes one packet of the stream, before anything else is done with it. Never raises."""
        into = self._into
        if not into.on:
            self._begun = False
            return
        data, key, pts, dts = bytes(packet), packet.is_keyframe, packet.pts, packet.dts
        if key:
            size = len(data)
            data, other = self._of_another(data)
            if len(data) < size - DELIMITER:
                pts = dts = None  # they are of the picture before it
            found = parameters(self._codec, data, self._length_size)
            new = packet.has_sidedata("new_extradata") if self._length_size else False
            if not self._begun or new or other or (found and found != self._parameters):
                self._begin(packet, data, found, changed=self._begun or self._follows)
        if self._begun:
            into.put(data, pts, dts, packet.duration or 0, key, captured_ns, wall_ns)

    def _of_another(self, data: bytes) -> tuple[bytes, bool]:
        """A key frame, and whether the stream goes on with another codec from it on: then without the rest of a picture
        before it, of which FFmpeg's parser has seen no end."""
        if self._codec not in _TELLING or self._length_size:
            return data, False
        codec, at = codec_of(data)
        if not codec or codec == self._codec:
            return data, False
        self._codec, self._parameters, self._other = codec, b"", True
        return data[at:], True

    def put_sound(self, packet: Packet[Any], captured_ns: int, wall_ns: int) -> None:
        """Takes one packet of the sound. Never raises."""
        if not self._begun or self._sound is None or packet.pts is None or not self._into.on:
            return
        data = bytes(packet)
        if self._adts and len(data) > 7 and data[0] == 0xFF and data[1] & 0xF0 == 0xF0:
            data = data[7 if data[1] & 1 else 9 :]
        self._into.put_sound(data, packet.pts, packet.duration or 0, captured_ns, wall_ns)

    def _begin(self, packet: Packet[Any], data: bytes, found: bytes, *, changed: bool) -> None:
        stream = self._stream
        assert stream is not None
        base = stream.time_base
        assert base is not None
        try:
            # A camera's description may be out of date, or lack the parameters: those in the stream count.
            raw = self._codec in _RAW and bool(found) and (changed or self._codec in ("h264", "hevc"))
            size = stream.codec_context.width, stream.codec_context.height
            if self._other:
                container, head = _FORMATS[self._codec], data
                size = _size(container, data)
            else:
                container, head = (_RAW[self._codec], data) if raw else ("nut", _described(stream, packet, data))
        except Exception as error:  # noqa: BLE001 - whatever FFmpeg cannot store must not end the stream
            self._begun = False
            self._into.refuse(redact(f"{self._codec} packets cannot be recorded: {error}"))
            return
        self._begun, self._follows, self._parameters = True, False, found or self._parameters
        self._into.begin(
            PacketHead(
                self._codec, *size, (base.numerator, base.denominator), container, head, self._live, changed,
                self._sound,
            )
        )  # fmt: skip


def _size(container: str, data: bytes) -> tuple[int, int]:
    import av

    with av.open(io.BytesIO(data), format=container) as opened:
        context = opened.streams.video[0].codec_context
        return context.width, context.height


def _described(stream: VideoStream, packet: Packet[Any], data: bytes) -> bytes:
    """The stream's parameters and one packet as a NUT file, FFmpeg's own format, which holds every codec."""
    import av

    memory = io.BytesIO()
    with av.open(memory, "w", format="nut") as out:
        copy = out.add_stream_from_template(stream, opaque=True)
        if packet.has_sidedata("new_extradata"):
            copy.codec_context.extradata = bytes(packet.get_sidedata("new_extradata"))
        first = av.Packet(data)
        first.stream, first.pts, first.dts, first.is_keyframe = copy, 0, 0, True
        out.mux(first)
    return memory.getvalue()
