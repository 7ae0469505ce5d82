"""Files and streams that go on with another video: where one of them ends and the next one begins.

What follows in a file is opened as a file of its own, from its first byte on, which `part_search` finds. A network's
stream gets another decoder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamd.sources.programs import ProgramSearch
from streamd.sources.recording import DELIMITER, codec_of
from streamd.sources.search import AHEAD, PartSearch
from streamd.sources.skipping import nal_length_size
from streamd.sources.slices import SliceJoiner

if TYPE_CHECKING:
    from av.packet import Packet

    from streamd.sources.av_connection import AvConnection

_NEAR = 8 << 20
"""Bytes in front of a part in which a packet may begin that has its first bytes."""
_CODECS = frozenset({"h264", "hevc", "mpeg2video", "mpeg4"})
"""Of those that a transport stream may change to."""


class PartEnds(Exception):
    """Another video begins.

    Args:
        given: what still belongs to the one before.
        joined: the packet that was put last begins with its last picture.
        first: the first picture of the next one; None where that is read again.
    """

    def __init__(
        self, given: tuple[Packet[Any], ...] = (), *, joined: bool = False, first: Packet[Any] | None = None
    ) -> None:
        super().__init__()
        self.given, self.joined, self.first = given, joined, first


class Watch:
    """Stands in the place of a `SliceJoiner`, which it passes the packets on to.

    Args:
        slices: gets them; None where a packet is always a picture.
    """

    def __init__(self, slices: SliceJoiner | None) -> None:
        self._slices = slices

    def put(self, packet: Packet[Any]) -> tuple[Packet[Any], ...]:
        """See `SliceJoiner.put`.

        Raises:
            PartEnds: another video begins with the packet.
        """
        raise NotImplementedError

    def flush(self) -> tuple[Packet[Any], ...]:
        """See `SliceJoiner.flush`."""
        return () if self._slices is None else self._slices.flush()

    def _pass_on(self, packet: Packet[Any]) -> tuple[Packet[Any], ...]:
        return (packet,) if self._slices is None else self._slices.put(packet)

    def _last(self, packet: Packet[Any], cut: int) -> tuple[Packet[Any], ...]:
        """Passes on the begin of a packet: FFmpeg's parser has seen no end of the picture before the next video."""
        last = SliceJoiner.cut(bytes(packet)[:cut], packet)
        last.pts, last.dts = packet.pts, packet.dts
        return self._pass_on(last)


class PartWatch(Watch):
    """Notices where the packets of a file are those of its next part, if that was not known when it was opened.

    Args:
        search: looks ahead of the packets.
        codec: FFmpeg's name of the present codec.
        slices: see `Watch`.
    """

    def __init__(self, search: PartSearch, codec: str, slices: SliceJoiner | None) -> None:
        super().__init__(slices)
        self._search, self._begin, self._codec = search, search.begin, codec
        self._look_at = 0
        """From this byte of the part on, a packet is looked at."""
        self._codecs: set[str] = set()
        """Of the next part, where key frames tell them."""

    @classmethod
    def of(cls, connection: AvConnection, slices: SliceJoiner | None) -> PartWatch | None:
        """None where an input has one part, or its end is known."""
        search, stream = connection.parts, connection.stream
        assert stream is not None
        if search is None or connection.end or connection.network:
            return None
        if isinstance(search, ProgramSearch):
            search.track = stream.id
        return cls(search, stream.codec_context.codec.canonical_name, slices)

    def put(self, packet: Packet[Any]) -> tuple[Packet[Any], ...]:
        """See `SliceJoiner.put`.

        Raises:
            PartEnds: the packet is of the next part.
        """
        if (at := packet.pos) is not None and at >= self._look_at:
            self._look(packet, self._begin + at)
        return self._pass_on(packet)

    def _look(self, packet: Packet[Any], at: int) -> None:
        search = self._search
        if search.next_at is None:
            search.look(at + AHEAD)
            if search.next_at is None:
                # At its end, a packet from there on means that the file has grown.
                self._look_at = search.seen - (0 if search.at_end else AHEAD) - self._begin
                return
        if isinstance(search, ProgramSearch):
            self._codecs = search.codecs - {self._codec}
        self._look_at = max(0, search.next_at - _NEAR - self._begin)
        size = packet.size
        if at + size + (size >> 5) + (64 << 10) < search.next_at:
            return
        codec, cut = codec_of(bytes(packet)) if self._codecs else ("", 0)
        if codec in self._codecs and cut > DELIMITER:
            raise PartEnds(self._last(packet, cut), joined=True)
        if at >= search.next_at or codec in self._codecs:
            raise PartEnds


class CodecWatch(Watch):
    """Notices that a network's transport stream, or HLS, goes on with another codec.

    Only key frames are looked at: those that FFmpeg's parser has found, which it changes with the program map.

    Args:
        codec: FFmpeg's name of the present one.
        slices: see `Watch`.
    """

    def __init__(self, codec: str, slices: SliceJoiner | None) -> None:
        super().__init__(slices)
        self.codec = codec
        self.next_codec = ""
        """FFmpeg's name of the codec with which it goes on, once that is known."""

    @classmethod
    def of(cls, connection: AvConnection, slices: SliceJoiner | None) -> CodecWatch | None:
        """None for other inputs."""
        container, stream = connection.container, connection.stream
        assert container is not None
        assert stream is not None
        context, name = stream.codec_context, container.format.name
        codec = context.codec.canonical_name
        told = name == "hls" or (name == "mpegts" and connection.network)
        if not told or codec not in _CODECS or nal_length_size(codec, context.extradata):
            return None
        return cls(codec, slices)

    def put(self, packet: Packet[Any]) -> tuple[Packet[Any], ...]:
        """See `SliceJoiner.put`.

        Raises:
            PartEnds: the packet is of another codec.
        """
        if packet.is_keyframe and packet.size:
            self._look(packet)
        return self._pass_on(packet)

    def _look(self, packet: Packet[Any]) -> None:
        data = bytes(packet)
        codec, cut = codec_of(data)
        if not codec or codec == self.codec:
            return
        self.next_codec = codec
        if cut <= DELIMITER:
            raise PartEnds(first=packet)
        first = SliceJoiner.cut(data[cut:], packet)
        first.is_keyframe = True
        raise PartEnds(self._last(packet, cut), joined=True, first=first)
