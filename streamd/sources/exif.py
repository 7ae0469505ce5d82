"""Tags of a still picture: how it is to be turned (JPEG, PNG, WebP, TIFF), and whether it is of a kind that FFmpeg does
not decode."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Protocol

from streamd.types import Rotation

_TURNS: dict[int, tuple[Rotation, bool]] = {
    1: (0, False), 2: (0, True), 3: (180, False), 4: (180, True), 5: (90, True), 6: (90, False), 7: (270, True),
    8: (270, False),
}  # fmt: skip
"""Clockwise degrees and a mirror after them (CIPA DC-008, table of orientations)."""
_HEAD = b"Exif\0\0"
_TIFF = (b"II*\0", b"MM\0*")
_ORIENTATION, _COMPRESSION = 0x0112, 0x0103
_JPEG = (6, 7)
"""Of the tag compression: JPEG, as TIFF 6.0 describes it and as it is written today."""
_MOST_ENTRIES = 512


class Data(Protocol):
    """Bytes that can be sliced without reading all of them: `bytes`, `mmap`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice, /) -> bytes: ...


def exif_orientation(data: Data) -> tuple[Rotation, bool] | None:
    """Clockwise degrees, and whether to mirror left to right after them; None if the data says nothing of it.

    Args:
        data: a whole picture. Whatever else it is changes nothing.
    """
    for begin in _blocks(data):
        if (found := _TURNS.get(_tag(data, begin, _ORIENTATION))) is not None:
            return found
    return None


def is_jpeg_in_tiff(data: Data) -> bool:
    """Whether the data is a TIFF file whose pixels are JPEGs: FFmpeg makes a black picture of it and says nothing."""
    return data[0:4] in _TIFF and _tag(data, 0, _COMPRESSION) in _JPEG


JPEG_IN_TIFF = "is a TIFF with JPEG inside, which cannot be decoded; save it as JPEG or PNG"
ANIMATED_WEBP = (
    "is an animated WebP, which cannot be decoded; save a picture of it as JPEG or PNG, or make a video of it"
)


def is_animated_webp(data: Data) -> bool:
    """Whether the data is a WebP file of several pictures: a flag of its header (WebP container, extended format)."""
    head = data[0:21]
    return head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and len(head) == 21 and bool(head[20] & 2)


def _blocks(data: Data) -> Iterator[int]:
    """Where blocks of Exif data begin: each one has the form of a TIFF file."""
    start = data[0:12]
    if start[:2] == b"\xff\xd8":
        yield from _of_jpeg(data)
    elif start[:8] == b"\x89PNG\r\n\x1a\n":
        at = 8
        while len(head := data[at : at + 8]) == 8:
            if head[4:] == b"eXIf":
                yield at + 8
            at += 12 + int.from_bytes(head[:4], "big")
    elif start[:4] == b"RIFF" and start[8:] == b"WEBP":
        at = 12
        while len(head := data[at : at + 8]) == 8:
            if head[:4] == b"EXIF":
                # Some writers put the marker of JPEG before it.
                yield at + 8 + (len(_HEAD) if data[at + 8 : at + 14] == _HEAD else 0)
            size = int.from_bytes(head[4:], "little")
            at += 8 + size + size % 2
    elif start[:4] in _TIFF:
        yield 0


def _of_jpeg(data: Data) -> Iterator[int]:
    at = 2
    while len(head := data[at : at + 4]) == 4 and head[0] == 0xFF and head[1] not in (0xD9, 0xDA):
        if head[1] == 0xFF:  # fill bytes
            at += 1
            continue
        if head[1] == 0xE1 and data[at + 4 : at + 10] == _HEAD:
            yield at + 10
        at += 2 + int.from_bytes(head[2:], "big")


def _tag(data: Data, begin: int, tag: int) -> int:
    """The number that a tag of the first directory holds; 0 if it is not there."""
    order: Literal["little", "big"] = "little" if data[begin : begin + 2] == b"II" else "big"

    def number(offset: int, size: int) -> int:
        return int.from_bytes(data[begin + offset : begin + offset + size], order)

    directory = number(4, 4)
    for i in range(min(number(directory, 2), _MOST_ENTRIES)):
        entry = directory + 2 + 12 * i
        if number(entry, 2) == tag:
            return number(entry + 8, 2)
    return 0
