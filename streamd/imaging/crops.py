"""Parts of pictures, copied as the decoder left them: what is kept of a frame once it goes back to its decoder.

Nothing is converted or scaled. A part is a small picture in the same pixel format, so a backend's preprocessing turns
it into a network's input as it does a frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from streamd.imaging.letterbox import FORMATS
from streamd.imaging.reference import coded_roi
from streamd.types import Box, ForeignPicture, Frame, Picture, rotated_size


class CropRefused(Exception):
    """The part cannot be copied; `reason` is a short constant."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _Plane(np.ndarray[Any, np.dtype[np.uint8]]):
    """One plane's bytes with the attributes of PyAV's planes."""

    buffer_ptr: int
    line_size: int


class PartPicture(ForeignPicture):
    """See `ForeignPicture`. Owns its planes."""

    __slots__ = ("planes",)

    def __init__(self, planes: Sequence[_Plane]) -> None:
        self.planes = planes


def _plane(rows: int, row_bytes: int) -> _Plane:
    plane = np.empty(rows * row_bytes, np.uint8).view(_Plane)
    plane.buffer_ptr, plane.line_size = plane.ctypes.data, row_bytes
    return plane


def cut(frame: Frame, part: Box, most: float) -> tuple[Frame, int]:
    """A frame that shows only a part of another one and owns its picture.

    Args:
        frame: with a picture in host memory.
        part: of the upright picture, inside it. Formats with chroma of half the resolution add a row or column where
            it begins or ends at an odd one.
        most: bytes that may be copied.

    Returns:
        The frame, and its bytes.

    Raises:
        CropRefused: `device` (a picture in device memory), `format` (its pixel format has no known layout), `memory`
            (it has more bytes than `most`).
    """
    picture = frame.picture
    if picture.device is not None:
        raise CropRefused("device")
    known = FORMATS.get(picture.format)
    if known is None:
        raise CropRefused("format")
    coded = coded_roi(part, picture)
    step = 2 if any(shape.shift_x or shape.shift_y for shape in known.planes) else 1
    x0, y0 = coded.x // step * step, coded.y // step * step
    x1 = min(picture.width, -(-(coded.x + coded.width) // step) * step)
    y1 = min(picture.height, -(-(coded.y + coded.height) // step) * step)
    width, height = x1 - x0, y1 - y0
    cuts = []
    size = 0
    for shape in known.planes:
        sample = shape.channels * known.bytes
        top, left = y0 >> shape.shift_y, (x0 >> shape.shift_x) * sample
        rows = ((y1 + shape.shift_y) >> shape.shift_y) - top
        row_bytes = ((x1 + shape.shift_x) >> shape.shift_x) * sample - left
        cuts.append((top, left, rows, row_bytes))
        size += rows * row_bytes
    if size > most:
        raise CropRefused("memory")
    # One piece of memory, and every plane as rows of bytes: this is done for each object, between two frames.
    memory = np.empty(size, np.uint8)
    address, at, planes = memory.__array_interface__["data"][0], 0, []
    for source, (top, left, rows, row_bytes) in zip(picture.native.planes, cuts, strict=True):
        pitch = source.line_size
        rectangle: Any = np.ndarray(
            (rows, row_bytes), np.uint8, memoryview(source), top * pitch + left, (pitch, 1)
        )  # fmt: skip
        target = memory[at : at + rows * row_bytes]
        target.reshape(rows, row_bytes)[...] = rectangle
        plane = target.view(_Plane)
        plane.buffer_ptr, plane.line_size = address + at, row_bytes
        planes.append(plane)
        at += len(target)
    p, f = picture, frame
    small = Picture(
        PartPicture(planes), p.format, width, height, p.matrix, p.full_range, p.rotation, None, p.mirrored,
        p.pixel_aspect,
    )  # fmt: skip
    upright = rotated_size(width, height, p.rotation)
    return Frame(
        f.stream, small, *upright, f.captured_ns, f.wall_ns, f.decoded_ns, f.pts_ns, None, f.epoch, f.seq
    ), size


def bgr_frame(frame: Frame, image: np.ndarray[Any, np.dtype[np.uint8]]) -> Frame:
    """A frame that shows `image` (H, W, 3), BGR and upright, in place of its own picture."""
    height, width = image.shape[:2]
    plane = _plane(height, width * 3)
    plane.view(np.ndarray).reshape(image.shape)[...] = image
    picture = Picture(PartPicture([plane]), "bgr24", width, height)
    return replace(frame, picture=picture, width=width, height=height, roi=None)
