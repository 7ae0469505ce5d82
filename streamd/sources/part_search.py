"""Where the next of several files begins that lie one behind the other, as `cat a.mp4 b.mp4` leaves them.

FFmpeg takes them for one file: of MP4 (ISO 14496-12) and FLV it reads the first one only, fragments, AVI (RIFF with
OpenDML's `AVIX`) and Matroska (RFC 8794, 3) go on with the tracks of the first one. Transport streams: see `programs`.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager

from streamd.sources.packs import PACK, PackSearch
from streamd.sources.programs import ProgramSearch, begins_with_units
from streamd.sources.search import CHUNK, NEVER, PartSearch, Read

_DOCUMENT, _SEGMENT, _HEAD = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", 256
_SLICE = 1 << 16
"""Bytes that are searched at a time: the search keeps the interpreter lock."""
_MATROSKA = re.compile(rb"\x1a\x45\xdf\xa3(?=(?:(?!\x1a\x45\xdf\xa3).){0,56}?(?:matroska|webm))", re.DOTALL)
_AVI = re.compile(rb"RIFF....AVI LIST", re.DOTALL)
_FLV = re.compile(rb"FLV\x01[\x01\x04\x05]\0\0\0\x09\0\0\0\0[\x08\x09\x12]")
_MP4 = re.compile(rb"\0\0\0[\x10-\xff](?=ftyp[ -~]{4})")
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_IVF = rb"DKIF\x00\x00\x20\x00"
_RAW = re.compile(rb"\x00{2,3}\x01(?:[\x09\x27\x47\x67]|[\x40\x42\x46]\x01)")
_UP_TO = rb"(?=U{3,200}?(?:\x00\x00\x01U{1,200}?)?\x00\x00\x01%b)".replace(b"U", rb"(?:(?!\x00\x00\x01).)")
"""Another unit follows, or one lies between. No byte is looked at for more than two of them."""
_H264 = re.compile(rb"\x00\x00\x01(?:\x09.\x00{2,3}\x01)?[\x27\x47\x67]" + _UP_TO % rb"[\x28\x48\x68]", re.DOTALL)
_H265 = re.compile(rb"\x00\x00\x01\x40\x01" + _UP_TO % rb"\x42\x01", re.DOTALL)
"""Parameter sets that the other codec cannot have: see `recording.codec_of`."""
_BOX = re.compile(rb"[ -~\xa9]{4}")
_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_MOST_BOXES = 64
"""Of a file that is no fragmented one. More are looked at as its packets come."""
_LARGEST_INIT = 1 << 20
_BLOCK = 8192
"""Bytes that are read at a time where fewer are asked for."""
_FRONT = 1 << 16
"""Bytes in which a transport stream begins."""

Limited = Callable[[], AbstractContextManager[None]]
"""Has whoever watches the thread know while it may hang."""


class _Scan(PartSearch):
    """Every byte is looked at. `begins`: what the next part begins with."""

    begins: re.Pattern[bytes]

    def start(self, begin: int) -> int:
        """See `PartSearch.start`."""
        self._restart(begin)
        self.look(begin)
        return self.next_at or 0

    def find(self, begin: int, end: int) -> None:
        """See `PartSearch.find`."""
        if (found := self._first(self._read(begin, end + _HEAD - begin), 0)) is not None:
            self.next_at = begin + found

    def _first(self, data: bytes, begin: int) -> int | None:
        """Where another part begins in a piece of the file, from one of its bytes on."""
        for at in range(0, len(data), _SLICE):
            found = self.begins.search(data, max(at, begin), at + _SLICE + _HEAD)
            if found is not None:
                return found.start()
        return None

    def _step(self) -> None:
        data = self._read(self.seen, CHUNK)
        if (found := self._first(data, self.seen == self.begin)) is not None:
            self.next_at = self.seen + found
            return
        self.at_end = len(data) < CHUNK
        self.seen = max(self.seen, self.seen + len(data) - _HEAD)


class FlvSearch(_Scan):
    """Files of Flash Video."""

    begins = _FLV


class AsfSearch(_Scan):
    """ASF, the .wmv and .asf of older recorders."""

    begins = re.compile(re.escape(_ASF))


class IvfSearch(_Scan):
    """IVF."""

    begins = re.compile(_IVF)


class MatroskaSearch(_Scan):
    """Matroska and WebM."""

    begins = _MATROSKA

    def start(self, begin: int) -> int:
        """See `PartSearch.start`. What looks like another document before this one's end is in it, such as an attached
        file; if it says where it ends, and is right."""
        self._restart(begin)
        head = self._read(begin, _HEAD)
        segment = _behind(head, 4)
        if segment is not None and head[segment : segment + 4] == _SEGMENT:
            end = _behind(head, segment + 4)
            if end is not None and begin + end <= self._size():
                following = self._read(begin + end, 4)
                if following == _DOCUMENT:
                    self.next_at = begin + end
                elif not following:
                    self.seen, self.at_end = begin + end, True
        if not self.at_end:
            self.look(begin)
        return self.next_at or 0


class RawSearch(_Scan):
    """H.264 and H.265 without a container. The same codec in another size needs no new part."""

    def start(self, begin: int) -> int:
        """See `PartSearch.start`."""
        head = self._read(begin, 4096)
        first, other = _H264.search(head), _H265.search(head)
        is_h265 = other is not None and (first is None or other.start() < first.start())
        self.begins = _H264 if is_h265 else _H265
        return super().start(begin)


def _behind(head: bytes, at: int) -> int | None:
    """Where the element ends whose size is there (RFC 8794, 4 and 6.2); None if that is not known."""
    first = head[at] if at < len(head) else 0
    length = 9 - first.bit_length()
    size = int.from_bytes(head[at : at + length], "big") & (1 << 7 * length) - 1
    if not first or size == (1 << 7 * length) - 1:
        return None
    return at + length + size


class AviSearch(_Scan):
    """AVI: as many RIFF lists as there are with what the first one continues with."""

    begins = _AVI

    def start(self, begin: int) -> int:
        """See `PartSearch.start`."""
        self._restart(begin)
        at, size = begin, self._size()
        while len(head := self._read(at, 12)) == 12 and head[:4] == b"RIFF":
            if head[8:] != b"AVIX" and at > begin:
                self.next_at = at
                return at
            length = int.from_bytes(head[4:8], "little")
            at += 8 + length + (length & 1)
        if at >= size and at <= size + 1:  # some leave the last byte out
            self.seen = NEVER
            return 0
        return super().start(begin)  # a recorder that was cut off tells no length


class Mp4Search(_Scan):
    """MP4 and QuickTime: from box to box."""

    begins = _MP4
    _scans = False

    def start(self, begin: int) -> int:
        """See `PartSearch.start`."""
        self._restart(begin)
        self._scans = self._whole = False
        self._init, self._time, self._last = b"", 0, begin
        """What the fragments of this part begin with, and when the first one does."""
        boxes = 0
        while self._goes_on(NEVER) and not self._scans and not self._init and boxes < _MOST_BOXES:
            self._step()
            boxes += 1
        if self._init:
            self.look(begin + CHUNK)
        return self.next_at or 0

    def _step(self) -> None:
        if self._scans:
            super()._step()
            return
        at, box = self.seen, self._box(self.seen)
        if box is None:
            self.at_end = True
            return
        kind, length = box
        if kind == b"ftyp" and self._whole and not self._repeats(at):
            self.next_at = at
            return
        if kind == b"moof" and not self._init:
            self._init, self._time = self._read(self.begin, min(at - self.begin, _LARGEST_INIT)), self._time_of(at)
        self._whole |= kind in (b"moov", b"mdat")
        if not length or not _BOX.fullmatch(kind) or at + length > self._size():
            # The last one may have been cut off, and what follows it be whole.
            self._scans, self.seen = True, self._last + 8
        else:
            self._last, self.seen = at, at + length

    def _jump(self, at: int) -> None:
        if self._scans:
            super()._jump(at)

    def _box(self, at: int) -> tuple[bytes, int] | None:
        """Its kind, and its length: 0 if it goes to the end of the file or is none."""
        head = self._read(at, 16)
        if len(head) < 8:
            return None
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:], "big")
        return head[4:8], length if length >= 8 else 0

    def _repeats(self, at: int) -> bool:
        """Whether the fragments of this part go on behind what they began with, as some servers repeat it."""
        if not self._init or self._read(at, len(self._init)) != self._init:
            return False
        at += len(self._init)
        for _ in range(_MOST_BOXES):
            box = self._box(at)
            if box is None or not box[1]:
                return False
            if box[0] == b"moof":
                return self._time_of(at) > self._time
            at += box[1]
        return False

    def _time_of(self, moof: int) -> int:
        data = self._read(moof, 4096)
        found = data.find(b"tfdt")
        if found < 0:
            return 0
        long = data[found + 4 : found + 5] == b"\1"
        return int.from_bytes(data[found + 8 : found + (16 if long else 12)], "big")


class _File:
    """The bytes of a file; none of one that cannot be read.

    Args:
        path: of the file.
        closed: whether nobody asks any more: a search ends then.
        limited: entered for each access to the file, which hangs where a network's file system does.
    """

    def __init__(self, path: str, closed: Callable[[], bool], limited: Limited) -> None:
        self._path, self._closed, self._limited = path, closed, limited
        self._block, self._begin = b"", 0
        """The latest that was read of a small piece, and where it begins: boxes may be as small as 8 bytes."""

    def read(self, at: int, size: int) -> bytes:
        """See `Read`."""
        if self._closed():
            return b""
        if size >= _BLOCK:
            return self._load(at, size)
        begin = at - self._begin
        if begin < 0 or begin + size > len(self._block):
            block = self._load(at, _BLOCK)
            if len(block) < _BLOCK:
                return block[:size]  # at the end of the file, which may grow
            self._block, self._begin, begin = block, at, 0
        return self._block[begin : begin + size]

    def _load(self, at: int, size: int) -> bytes:
        try:
            with self._limited(), open(self._path, "rb") as file:
                file.seek(at)
                return file.read(size)
        except OSError:
            return b""

    def size(self) -> int:
        """In bytes."""
        try:
            with self._limited():
                return os.stat(self._path).st_size
        except OSError:
            return 0


def search_of(
    path: str, closed: Callable[[], bool] = lambda: False, limited: Limited = contextlib.nullcontext
) -> PartSearch | None:
    """What looks for the parts of a file; None where it has one, as far as that is known.

    Args:
        path: of the file.
        closed: ends a search.
        limited: see `_File`.
    """
    file = _File(path, closed, limited)
    return searching(file.read, file.size)


def searching(read: Read, size: Callable[[], int]) -> PartSearch | None:
    """See `search_of`. `read` gives so many bytes from one on, `size` the number of all bytes."""
    head = read(0, _HEAD)
    kind: type[PartSearch]
    if head.startswith(_DOCUMENT):
        kind = MatroskaSearch
    elif head[4:8] in _FIRST_BOXES:
        kind = Mp4Search
    elif head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        kind = AviSearch
    elif head.startswith(b"FLV\x01"):
        kind = FlvSearch
    elif head.startswith(_ASF):
        kind = AsfSearch
    elif re.match(_IVF, head):
        kind = IvfSearch
    elif head.startswith(PACK):
        kind = PackSearch
    elif _RAW.match(head):
        kind = RawSearch
    elif begins_with_units(read(0, _FRONT)):
        kind = ProgramSearch
    else:
        return None
    return kind(read, size)
