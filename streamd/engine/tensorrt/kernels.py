"""The device code, and the preprocess kernel's view of a picture: kernels.cu's `Picture`, built once per geometry."""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from streamd.errors import BackendError, FrameError
from streamd.imaging.reference import analysed_part, coded_roi, yuv_to_rgb_matrix
from streamd.types import CENTERED, Float32Array, Frame, Letterbox, Picture, Placement, Rotation, rotated_size

PTX = Path(__file__).with_name("kernels.ptx")
SOURCE = Path(__file__).with_name("kernels.cu")

BLOCK = (32, 8, 1)
"""Threads per block of the preprocess kernel: one per pixel."""
INPUT_TYPES = ("float32", "float16", "uint8", "int8")
"""Element types that a preprocess kernel can write; integers are rounded and saturated."""


class Layout(IntEnum):
    """How a picture's samples lie in memory; kernels.cu has the same numbers."""

    PLANAR8 = 0
    SEMI8 = 1
    PLANAR16 = 2
    SEMI16 = 3
    PACKED8 = 4
    GRAY8 = 5


class PixelFormat(NamedTuple):
    """One FFmpeg pixel format as the kernel reads it."""

    layout: Layout
    shift_x: int = 0
    """Chroma is 2^-shift_x as wide as luma, rounded up."""
    shift_y: int = 0
    factor: float = 1.0
    """Samples times this are 8-bit code values."""
    yuv: bool = True
    reverse: bool = False
    """True if the three samples are B, G, R."""

    @property
    def planes(self) -> int:
        """How many."""
        return {Layout.PLANAR8: 3, Layout.PLANAR16: 3, Layout.SEMI8: 2, Layout.SEMI16: 2}.get(self.layout, 1)


FORMATS: dict[str, PixelFormat] = {
    "yuv420p": PixelFormat(Layout.PLANAR8, 1, 1),
    "yuvj420p": PixelFormat(Layout.PLANAR8, 1, 1),
    "yuv422p": PixelFormat(Layout.PLANAR8, 1, 0),
    "yuvj422p": PixelFormat(Layout.PLANAR8, 1, 0),
    "yuv444p": PixelFormat(Layout.PLANAR8),
    "yuvj444p": PixelFormat(Layout.PLANAR8),
    "nv12": PixelFormat(Layout.SEMI8, 1, 1),
    # Ten (p010) or twelve (p016) bits in the upper part of sixteen; what NVDEC writes for such streams.
    "p010le": PixelFormat(Layout.SEMI16, 1, 1, 1 / 256),
    "p016le": PixelFormat(Layout.SEMI16, 1, 1, 1 / 256),
    "yuv420p10le": PixelFormat(Layout.PLANAR16, 1, 1, 1 / 4),
    "yuv422p10le": PixelFormat(Layout.PLANAR16, 1, 0, 1 / 4),
    "gray": PixelFormat(Layout.GRAY8, yuv=False),
    "rgb24": PixelFormat(Layout.PACKED8, yuv=False),
    "bgr24": PixelFormat(Layout.PACKED8, yuv=False, reverse=True),
}

_POINTERS = struct.Struct("<3Q3i")
"""plane[3], pitch[3]: the part that changes from frame to frame."""
_GEOMETRY = struct.Struct("<i12q8i12f")
"""Starting with `layout`: the part that a geometry determines."""
PICTURE_BYTES = _POINTERS.size + _GEOMETRY.size
_ONE = 1 << 32
_CACHED = 256


def ptx() -> bytes:
    """The compiled device code, zero-terminated as the driver requires.

    Raises:
        BackendError: the file was not installed.
    """
    try:
        return PTX.read_bytes() + b"\0"
    except OSError as error:
        raise BackendError(
            f"backend tensorrt: {PTX} cannot be read: {error.strerror}; reinstall streamd or run tools/build_kernels.py"
        ) from error


Normalization = tuple[Float32Array, Float32Array]
"""Gain and offset of each channel; see `ModelSpec.normalization`."""
PIXELS: Normalization = np.ones(3, np.float32), np.zeros(3, np.float32)
"""Pixels as they are."""
PREPROCESS_ARGUMENTS = "PPiii" + 7 * "f"
"""Arguments of a preprocess kernel; see `preprocess_arguments`. Six of the floats are kernels.cu's `Affine`."""


def preprocess_arguments(
    pictures: int, out: int, width: int, height: int, *, nhwc: bool, normalization: Normalization, pad: float
) -> tuple[int | float, ...]:
    """The arguments of a preprocess kernel.

    Args:
        pictures: address of one `Picture` per frame.
        out: address of the network's input.
        width: width of the input, in pixels.
        height: height of the input, in pixels.
        nhwc: whether channels come last.
        normalization: from pixels 0..255 to the network's values.
        pad: grey level 0..255 around the picture.
    """
    gain, offset = normalization
    return pictures, out, width, height, int(nhwc), *gain.tolist(), *offset.tolist(), float(pad)


def preprocess_grid(width: int, height: int, frames: int) -> tuple[int, int, int]:
    """Number of blocks that cover an input of `width` × `height` pixels for this many frames."""
    return -(-width // BLOCK[0]), -(-height // BLOCK[1]), frames


def _axis(out: int, origin: int, size: int, full: int, samples: int) -> tuple[int, int]:
    """(start, step) in 32.32 fixed point of reference.py's sampling positions along one axis of a plane.

    position(i) = ((i + 0.5) · size/out + origin) · samples/full − 0.5
    """
    step = (size * samples * _ONE) // (out * full)
    start = ((size + 2 * origin * out) * samples * _ONE) // (2 * out * full) - _ONE // 2
    return start, step


def _turn(
    x: tuple[int, int], y: tuple[int, int], width: int, height: int, rotation: Rotation, mirrored: bool
) -> list[int]:
    """Sampling positions in coded content of `width` × `height`: origin, step per column and step per row, in upright
    order.

    Returns x's three numbers, then y's.
    """
    out = _turned(x, y, width, height, rotation)
    if mirrored:  # the column counts from the right
        last = rotated_size(width, height, rotation)[0] - 1
        for axis in (0, 3):
            out[axis] += out[axis + 1] * last
            out[axis + 1] = -out[axis + 1]
    return out


def _turned(x: tuple[int, int], y: tuple[int, int], width: int, height: int, rotation: int) -> list[int]:
    (x0, dx), (y0, dy) = x, y
    last_x, last_y = x0 + dx * (width - 1), y0 + dy * (height - 1)
    match rotation:
        case 90:  # the upright column counts coded rows from the bottom; the upright row counts coded columns
            return [x0, 0, dx, last_y, -dy, 0]
        case 180:
            return [last_x, -dx, 0, last_y, 0, -dy]
        case 270:
            return [last_x, 0, -dx, y0, dy, 0]
        case _:
            return [x0, dx, 0, y0, 0, dy]


def _matrix(picture: Picture, kind: PixelFormat, color: Literal["RGB", "BGR"]) -> npt.NDArray[np.float64]:
    """(3, 4): each of the network's channels from samples, as three factors and an offset."""
    out = np.zeros((3, 4))
    if kind.yuv:
        matrix, offset = yuv_to_rgb_matrix(picture.matrix, picture.full_range or picture.format.startswith("yuvj"))
        out[:, :3] = matrix * kind.factor
        out[:, 3] = -matrix @ offset
    elif kind.layout is Layout.GRAY8:
        out[:, 0] = 1
    else:
        out[:, :3] = np.eye(3)[::-1] if kind.reverse else np.eye(3)
    return out[::-1] if color == "BGR" else out


@dataclass(slots=True, frozen=True)
class Geometry:
    """Shared by all frames of one size, format, rotation and crop."""

    box: Letterbox
    fixed: bytes
    """`Picture` from `layout` on."""
    rows: tuple[int, ...]
    """Rows of each plane."""
    row_bytes: tuple[int, ...]
    """Picture bytes in a row of each plane: the smallest pitch."""


def _geometry(
    frame: Frame, input_width: int, input_height: int, color: Literal["RGB", "BGR"], placement: Placement
) -> Geometry:
    picture = frame.picture
    kind = FORMATS.get(picture.format)
    if kind is None:
        raise FrameError(
            f"stream {frame.stream}: pixel format {picture.format} is not supported on the GPU; "
            f"supported: {', '.join(sorted(FORMATS))}"
        )
    roi = analysed_part(frame)
    box = Letterbox.fit(roi, input_width, input_height, placement, pixel_aspect=picture.pixel_aspect)
    coded = coded_roi(roi, picture)
    width, height = rotated_size(box.content_width, box.content_height, picture.rotation)
    chroma = (
        (picture.width + (1 << kind.shift_x) - 1) >> kind.shift_x,
        (picture.height + (1 << kind.shift_y) - 1) >> kind.shift_y,
    )
    axes: list[int] = []
    for samples_x, samples_y in ((picture.width, picture.height), chroma):
        x = _axis(width, coded.x, coded.width, picture.width, samples_x)
        y = _axis(height, coded.y, coded.height, picture.height, samples_y)
        axes += _turn(x, y, width, height, picture.rotation, picture.mirrored)
    fixed = _GEOMETRY.pack(
        kind.layout, *axes, picture.width, picture.height, *chroma,
        box.pad_x, box.pad_y, box.content_width, box.content_height,
        *_matrix(picture, kind, color).ravel().tolist(),
    )  # fmt: skip
    size = 2 if kind.layout in (Layout.PLANAR16, Layout.SEMI16) else 1
    first = 3 if kind.layout is Layout.PACKED8 else 1
    other = 2 if kind.planes == 2 else 1
    widths = [picture.width * first * size] + [chroma[0] * other * size] * (kind.planes - 1)
    return Geometry(box, fixed, (picture.height, *[chroma[1]] * (kind.planes - 1)), tuple(widths))


class Geometries:
    """Creates and caches geometries. Used by one thread.

    Args:
        input_width: network input, pixels.
        input_height: network input, pixels.
        color: channel order of the network's input.
        placement: where pictures go in it.
    """

    def __init__(
        self,
        input_width: int,
        input_height: int,
        color: Literal["RGB", "BGR"] = "RGB",
        placement: Placement = CENTERED,
    ) -> None:
        self._size = input_width, input_height
        self._color = color
        self._placement = placement
        self._kept: OrderedDict[tuple[Any, ...], Geometry] = OrderedDict()

    def of(self, frame: Frame) -> Geometry:
        """The geometry of `frame`.

        Raises:
            FrameError: an unknown pixel format, or a crop outside the picture.
        """
        p = frame.picture
        key = (p.format, p.width, p.height, p.matrix, p.full_range, p.rotation, p.mirrored, p.pixel_aspect, frame.roi)
        found = self._kept.get(key)
        if found is None:
            found = self._kept[key] = _geometry(frame, *self._size, self._color, self._placement)
            if len(self._kept) > _CACHED:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(key)
        return found


def plane_layout(frame: Frame, geometry: Geometry) -> list[tuple[int, int, int]]:
    """(address, pitch, bytes) of each plane as the decoder left it, with complete rows.

    Raises:
        FrameError: the planes do not match the picture's format, or rows are stored bottom-up.
    """
    planes = frame.picture.native.planes
    if len(planes) != len(geometry.rows):
        raise FrameError(
            f"stream {frame.stream}: a {frame.picture.format} picture has {len(geometry.rows)} planes, "
            f"this one has {len(planes)}"
        )
    out = []
    for plane, rows, row_bytes in zip(planes, geometry.rows, geometry.row_bytes, strict=True):
        pitch = plane.line_size
        if pitch < row_bytes:
            raise FrameError(
                f"stream {frame.stream}: a row of {row_bytes} bytes does not fit the picture's pitch of {pitch}"
            )
        # The last row may end with its pixels: padding is not guaranteed after it.
        out.append((plane.buffer_ptr, pitch, pitch * (rows - 1) + row_bytes))
    return out


def pack_picture(into: Any, index: int, planes: list[tuple[int, int]], geometry: Geometry) -> None:
    """Writes picture `index` of a batch.

    Args:
        into: writable bytes, PICTURE_BYTES per picture.
        index: place in the batch.
        planes: (address, pitch) of each plane, as the kernel will reach them.
        geometry: of the same frame.
    """
    (a, pa), (b, pb), (c, pc) = planes if len(planes) == 3 else [*planes, *[(0, 0)] * (3 - len(planes))]
    at = index * PICTURE_BYTES
    _POINTERS.pack_into(into, at, a, b, c, pa, pb, pc)
    at += _POINTERS.size
    into[at : at + len(geometry.fixed)] = geometry.fixed


STAGE_ALIGN = 256
"""Planes of host pictures start at multiples of this in the staging buffer."""


def stage(
    planes: list[tuple[int, int, int]], base: int, offset: int, copy: Callable[[int, int, int], None] | None
) -> tuple[list[tuple[int, int]], int]:
    """Places host planes one after the other in a staging buffer.

    Args:
        planes: see `plane_layout`.
        base: the buffer's address on the device.
        offset: where the first plane goes.
        copy: called with (offset, address, bytes) for each plane; None only measures.

    Returns:
        (device address, pitch) of each plane, and the offset after the last.
    """
    out = []
    for address, pitch, size in planes:
        if copy is not None:
            copy(offset, address, size)
        out.append((base + offset, pitch))
        offset += -(-size // STAGE_ALIGN) * STAGE_ALIGN
    return out, offset
