"""How a still picture is to be turned: the Exif orientation of JPEG, PNG, WebP and TIFF data."""

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
_ORIENTATION = 0x0112
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
        if (found := _of_tiff(data, begin)) is not None:
            return found
    return None


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
    elif start[:4] in (b"II*\0", b"MM\0*"):
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


def _of_tiff(data: Data, begin: int) -> tuple[Rotation, bool] | None:
    order: Literal["little", "big"] = "little" if data[begin : begin + 2] == b"II" else "big"

    def number(offset: int, size: int) -> int:
        return int.from_bytes(data[begin + offset : begin + offset + size], order)

    directory = number(4, 4)
    for i in range(min(number(directory, 2), _MOST_ENTRIES)):
        entry = directory + 2 + 12 * i
        if number(entry, 2) == _ORIENTATION:
            return _TURNS.get(number(entry + 8, 2))
    return None
