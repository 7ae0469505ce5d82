"""Converts PyAV's frame to the daemon's `Picture`: format, matrix, range and rotation, as the stream declares them."""

from __future__ import annotations

import struct
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from streamd.sources.exif import exif_orientation
from streamd.types import ColorMatrix, Picture, Rotation

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame

# ITU-T H.273 matrix coefficients. Unspecified is treated as BT.601, as FFmpeg and OpenCV do.
_MATRIX: dict[int, ColorMatrix] = {1: "bt709", 5: "bt601", 6: "bt601", 4: "bt601", 9: "bt2020", 10: "bt2020"}
_JPEG_RANGE = 2


_MATRIX_BYTES = struct.Struct("=9i")

UPRIGHT: tuple[Rotation, bool] = (0, False)


def orientation(matrix: bytes) -> tuple[Rotation, bool]:
    """What FFmpeg's display matrix does to a picture: clockwise quarter turns, and a mirror left to right after them.

    Args:
        matrix: (a b u / c d v / x y w) as 32-bit integers: x' = a·x + c·y, y' = b·x + d·y, y downwards (`libavutil/
            display.h`, ISO/IEC 14496-12 `tkhd`). What maps the picture to nothing, or is cut off, changes nothing; an
            angle between quarter turns is taken for the nearest.
    """
    if len(matrix) < _MATRIX_BYTES.size:
        return UPRIGHT
    a, b, _, c, d, *_ = _MATRIX_BYTES.unpack_from(matrix)
    if a * d == b * c:
        return UPRIGHT
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return (180 if d < 0 or (d == 0 and a < 0) else 0), a * d < 0
    return (90 if b > 0 or (b == 0 and c < 0) else 270), b * c > 0


def turned(angle: float) -> tuple[Rotation, bool]:
    """The same for an angle alone, in degrees counterclockwise."""
    quarters: tuple[Rotation, ...] = (0, 270, 180, 90)
    return quarters[round(angle / 90) % 4], False


def orientation_of(native: VideoFrame, packet: Packet[Any] | None) -> tuple[Rotation, bool]:
    """Of a picture, which came out after `packet` went in."""
    from av.sidedata.sidedata import SideDataContainer

    # `native.side_data` would keep its container, which refers to the picture: a cycle that only the garbage collector
    # breaks, and until then pictures pile up, in a hardware decoder's memory too.
    container: Any = SideDataContainer
    try:
        found: Any = container(native).get("DISPLAYMATRIX")
    except ValueError:
        # PyAV knows not every kind of side data: not Exif, which FFmpeg 8 attaches to JPEG, PNG and WebP pictures.
        exif = exif_orientation(bytes(packet)) if packet is not None else None
        return exif or turned(native.rotation)
    return UPRIGHT if found is None else orientation(bytes(found))


def _format_on_device(native: VideoFrame) -> str:
    """The pixel format in device memory. PyAV before 18 does not report it: NVDEC writes NV12, or P010 for ten bits."""
    told = getattr(native, "sw_format", None)
    if told is not None:
        return str(told.name)
    planes = native.planes  # PyAV creates them anew at each access
    if len(planes) != 2:
        return str(native.format.name)
    # A row of ten-bit samples takes twice its width in bytes; decoders pad by much less than a row.
    return "p010le" if planes[0].line_size >= 2 * native.width else "nv12"


def top_down(native: VideoFrame) -> VideoFrame:
    """`native`, or a copy if its rows are bottom-up, as in raw video of old AVI files: no reader supports that."""
    if native.planes[0].line_size >= 0:
        return native
    return native.reformat(format="rgb24")


def aspect_of(ratio: Fraction | None) -> float:
    """A declared sample aspect ratio; 1 where there is none, or one that no camera has."""
    return float(ratio) if ratio is not None and Fraction(1, 4) <= ratio <= 4 else 1.0


def picture_of(
    native: VideoFrame,
    *,
    rotation: Rotation = 0,
    mirrored: bool = False,
    pixel_aspect: float = 1.0,
    device: int | None = None,
) -> Picture:
    """Describes `native`; copies nothing.

    Args:
        native: as the decoder returned it.
        rotation: clockwise degrees, see `orientation`.
        mirrored: left to right, once turned.
        pixel_aspect: width of a coded pixel by its height, see `aspect_of`.
        device: CUDA device that holds the pixels, None for the host.
    """
    name = native.format.name
    if device is not None:
        name = _format_on_device(native)
    return Picture(
        native,
        name,
        native.width,
        native.height,
        _MATRIX.get(int(native.colorspace), "bt601"),
        int(native.color_range) == _JPEG_RANGE or name.startswith("yuvj"),
        rotation,
        device,
        mirrored,
        1 / pixel_aspect if rotation in (90, 270) else pixel_aspect,
    )
