"""Files that consist of several, one behind the other: where the next one begins.

FFmpeg opens such a file as if it were one. A transport stream may go on with another codec, of which its program map
tells (ISO 13818-1, 2.4.4.8): its packets come as those of the track that was opened, whose decoder cannot read them, or
with another PID, not at all. A second Matroska document in an EBML stream (RFC 8794, 3) is read with the tracks of the
first. What follows is therefore opened as a file of its own, from its first byte on.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from streamd.sources.recording import DELIMITER, codec_of
from streamd.sources.skipping import nal_length_size
from streamd.sources.slices import SliceJoiner

if TYPE_CHECKING:
    from av.packet import Packet

    from streamd.sources.av_connection import AvConnection

_UNIT = 188
"""Bytes of a transport packet."""
_VIDEO = frozenset({0x01, 0x02, 0x10, 0x1B, 0x24, 0x33, 0xEA})
"""Stream types of MPEG-1, MPEG-2, MPEG-4, H.264, H.265, H.266, VC-1."""
_CODECS = {0x01: "mpeg2video", 0x02: "mpeg2video", 0x10: "mpeg4", 0x1B: "h264", 0x24: "hevc"}
_CHUNK, _AHEAD = 4 << 20, 1 << 20
"""Bytes that are looked through at a time, and as far ahead of the packets."""
_NEAR = 8 << 20
"""Bytes in front of a part in which a packet may begin that has its first bytes."""
_JUMP = 32 << 20
"""Bytes that are passed over unread where the first packet is farther from the begin, as it is with `start_s`."""
_NEVER = 1 << 62
_WINDOW = 4096
"""Bytes that are searched at a time for the begin of a unit."""
_FAR = 64
"""Units between the association table and a map that belongs to it, and between a map's first unit and its last."""
_LONGEST = 1024
"""Bytes of a section."""
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
"""Bytes with their bits in the other order: that of `zlib` in a checksum."""
_DOCUMENT, _SEGMENT, _KINDS, _HEAD = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", (b"matroska", b"webm"), 64


class _Program(NamedTuple):
    at: int
    """Where the tables begin, in bytes."""
    map_at: int
    """Where the map itself does."""
    number: int
    video: tuple[tuple[int, int], ...]
    """Stream type and PID of each track."""

    @property
    def types(self) -> list[int]:
        return [kind for kind, _ in self.video]

    @property
    def pids(self) -> list[int]:
        return [pid for _, pid in self.video]


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


class _Watch:
    """Stands in the place of a `SliceJoiner`, which it passes the packets on to.

    Args:
        slices: gets them; None where a packet is always a picture.
    """

    def __init__(self, slices: SliceJoiner | None) -> None:
        self._slices = slices

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


class PartWatch(_Watch):
    """Looks for the next part in front of the packets.

    Args:
        path: the file.
        begin: its byte at which the present part begins.
        codec: FFmpeg's name of its codec.
        track: PID of its video; not used for Matroska.
        slices: see `_Watch`.
        matroska: it is no transport stream.
    """

    def __init__(
        self, path: str, begin: int, codec: str, track: int, slices: SliceJoiner | None, *, matroska: bool
    ) -> None:
        super().__init__(slices)
        self._path, self._begin, self._codec, self._track = path, begin, codec, track
        self._matroska = matroska
        self._seen = begin
        """What is before was looked through."""
        self._program: _Program | None = None
        """The one with our track."""
        self._alone = False
        """There is no other one beside it."""
        self._look_at = 0
        """From this byte of the part on, a packet is looked at."""
        self._codecs: set[str] = set()
        """Of the next part, where key frames tell them."""
        self.next_at: int | None = None
        """Byte of the file at which the next part begins, once that is known."""

    @classmethod
    def of(cls, connection: AvConnection, slices: SliceJoiner | None) -> PartWatch | None:
        """None where an input has one part, or cannot be opened in the middle."""
        container, stream = connection.container, connection.stream
        assert container is not None
        assert stream is not None
        formats, codec = container.format.name.split(","), stream.codec_context.codec.canonical_name
        matroska = "matroska" in formats
        if connection.network or not (matroska or "mpegts" in formats):
            return None
        path = connection.settings.url.removeprefix("file:")
        return cls(path, connection.begin, codec, stream.id, slices, matroska=matroska)

    def put(self, packet: Packet[Any]) -> tuple[Packet[Any], ...]:
        """See `SliceJoiner.put`.

        Raises:
            PartEnds: the packet is of the next part.
        """
        if (at := packet.pos) is not None and at >= self._look_at:
            self._look(packet, self._begin + at)
        return self._pass_on(packet)

    def _look(self, packet: Packet[Any], at: int) -> None:
        while self.next_at is None and self._seen <= at + _AHEAD:
            if not self._search():
                return
            if at - self._seen > _JUMP:
                self._seen = at - _NEAR
            self._look_at = self._seen - _AHEAD - self._begin
        if self.next_at is None:
            return
        self._look_at = max(0, self.next_at - _NEAR - self._begin)
        size = packet.size
        if at + size + (size >> 5) + (64 << 10) < self.next_at:
            return
        codec, cut = codec_of(bytes(packet)) if self._codecs else ("", 0)
        if codec in self._codecs and cut > DELIMITER:
            raise PartEnds(self._last(packet, cut), joined=True)
        if at >= self.next_at or codec in self._codecs:
            raise PartEnds

    def _search(self) -> bool:
        """Looks through the next bytes of the file; False at its end."""
        try:
            with open(self._path, "rb") as file:
                if self._matroska and self._seen == self._begin:
                    self._seen = _document_end(file, self._begin)
                file.seek(self._seen)
                data = file.read(_CHUNK)
        except OSError:
            self._look_at = _NEVER
            return False
        end = self._seen + len(data)
        if self._matroska:
            self._find_document(data)
        else:
            self._find_program(data)
        self._seen = max(self._seen, end - (_HEAD if self._matroska else 2 * _UNIT))
        if len(data) == _CHUNK or self.next_at is not None:
            return True
        self._look_at = end - self._begin  # a packet from there on: the file has grown
        return False

    def _find_document(self, data: bytes) -> None:
        at = data.find(_DOCUMENT, self._seen == self._begin)
        while at >= 0:
            if any(kind in data[at : at + _HEAD] for kind in _KINDS):
                self.next_at = self._seen + at
                return
            at = data.find(_DOCUMENT, at + 1)

    def _find_program(self, data: bytes) -> None:
        programs = [program for program in _programs(data) if program.video]
        least = -1
        if self._program is None:
            if not programs:
                return
            ours = next((i for i, program in enumerate(programs) if self._track in program.pids), 0)
            self._program = programs[ours]
            self._alone = len({program.number for program in programs if program.at < _AHEAD}) == 1
            # A file may begin with what is left of another: the next part is behind our map, or it would begin anew.
            programs, least = programs[ours + 1 :], self._program.map_at
        for program in programs:
            if program.number != self._program.number and not self._alone:
                continue
            if program.types != self._program.types:
                self.next_at = self._seen + (program.at if program.at > least else program.map_at)
                self._codecs = {_CODECS[kind] for kind in program.types if kind in _CODECS} - {self._codec}
                return


class CodecWatch(_Watch):
    """Notices that a network's transport stream, or HLS, goes on with another codec.

    Only key frames are looked at: those that FFmpeg's parser has found, which it changes with the program map.

    Args:
        codec: FFmpeg's name of the present one.
        slices: see `_Watch`.
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
        if not told or codec not in _CODECS.values() or nal_length_size(codec, context.extradata):
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


def _document_end(file: BinaryIO, begin: int) -> int:
    """Where the Matroska document that begins there ends, if it says so and is right; otherwise `begin`.

    What looks like another document before is in it, such as an attached file.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(begin)
    head = file.read(_HEAD)
    segment = _behind(head, 4)
    if segment is None or head[segment : segment + 4] != _SEGMENT:
        return begin
    end = _behind(head, segment + 4)
    if end is None or begin + end > size:
        return begin
    file.seek(begin + end)
    return begin + end if file.read(4) in (_DOCUMENT, b"") else begin


def _behind(head: bytes, at: int) -> int | None:
    """Where the element ends whose size is there (RFC 8794, 4 and 6.2); None if that is not known."""
    first = head[at] if at < len(head) else 0
    length = 9 - first.bit_length()
    size = int.from_bytes(head[at : at + length], "big") & (1 << 7 * length) - 1
    if not first or size == (1 << 7 * length) - 1:
        return None
    return at + length + size


def _programs(data: bytes) -> Iterator[_Program]:
    """The program maps in a piece of a transport stream, in their order."""
    at = 0
    while (at := _aligned(data, at)) >= 0:
        count = (len(data) - at) // _UNIT
        units: npt.NDArray[np.uint8] = np.frombuffer(data, np.uint8, count * _UNIT, at).reshape(count, _UNIT)
        broken = np.flatnonzero(units[:, 0] != 0x47)
        if broken.size:
            units = units[: broken[0]]
        tables = None
        # Sections begin in units that say so; a picture's would go on with 0, 0, 1.
        for number in np.flatnonzero((units[:, 1] & 0x40 != 0) & (units[:, 3] & 0x10 != 0)):
            unit = bytes(units[number])
            offset = at + int(number) * _UNIT
            payload = _payload(unit)
            section = payload[1 + payload[0] :] if payload else b""
            if unit[1] & 0x1F == 0 and unit[2] == 0:
                tables = offset
            elif section[:1] == b"\x02" and payload[:3] != b"\0\0\1":
                section = _whole(section, unit, units[number + 1 : number + _FAR])
                if _is_sound(section):
                    begin = tables if tables is not None and offset - tables <= _FAR * _UNIT else offset
                    yield _Program(begin, offset, int.from_bytes(section[3:5], "big"), _video(section))
        at += len(units) * _UNIT
        if not broken.size:
            return


def _aligned(data: bytes, at: int) -> int:
    """Where transport packets begin, from a byte on; -1 if nowhere."""
    while (size := min(_WINDOW, len(data) - at - 2 * _UNIT)) > 0:
        begins = np.frombuffer(data, np.uint8, size + 2 * _UNIT, at) == 0x47
        found = np.flatnonzero(begins[:size] & begins[_UNIT : size + _UNIT] & begins[2 * _UNIT :])
        if found.size:
            return at + int(found[0])
        at += size
    return -1


def _payload(unit: bytes) -> bytes:
    return unit[5 + unit[4] if unit[3] & 0x20 else 4 :] if unit[3] & 0x10 else b""


def _whole(section: bytes, unit: bytes, following: npt.NDArray[np.uint8]) -> bytes:
    """A section that begins in a unit, with what of it is in the units that follow."""
    size = 3 + (int.from_bytes(section[1:3], "big") & 0xFFF)
    if len(section) >= size or size > _LONGEST:
        return section[:size]
    same = (following[:, 1] & 0x1F == unit[1] & 0x1F) & (following[:, 2] == unit[2])
    for number in np.flatnonzero(same):
        if len(section) >= size or following[number, 1] & 0x40:
            break
        section += _payload(bytes(following[number]))
    return section[:size]


def _is_sound(section: bytes) -> bool:
    """Whether its checksum fits (ISO 13818-1, annex A). FFmpeg takes no notice of damaged ones either."""
    return 12 < len(section) <= _LONGEST and zlib.crc32(section.translate(_REVERSED)) == 0xFFFFFFFF


def _video(section: bytes) -> tuple[tuple[int, int], ...]:
    end = min(len(section), 3 + (int.from_bytes(section[1:3], "big") & 0xFFF) - 4)
    at = 12 + (int.from_bytes(section[10:12], "big") & 0xFFF)
    found = []
    while at + 5 <= end:
        if section[at] in _VIDEO:
            found.append((section[at], int.from_bytes(section[at + 1 : at + 3], "big") & 0x1FFF))
        at += 5 + (int.from_bytes(section[at + 3 : at + 5], "big") & 0xFFF)
    return tuple(found)
