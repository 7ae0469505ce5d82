"""Converts PyAV's frame to the daemon's `Picture`: format, matrix, range and rotation, as the stream declares them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamd.types import ColorMatrix, Picture, Rotation

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

# ITU-T H.273 matrix coefficients. Unspecified is treated as BT.601, as FFmpeg and OpenCV do.
_MATRIX: dict[int, ColorMatrix] = {1: "bt709", 5: "bt601", 6: "bt601", 4: "bt601", 9: "bt2020", 10: "bt2020"}
_JPEG_RANGE = 2


def clockwise(degrees: float) -> Rotation:
    """FFmpeg's counter-clockwise display rotation as clockwise quarter turns."""
    quarter = round(-degrees / 90) % 4
    return (0, 90, 180, 270)[quarter]


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


def picture_of(native: VideoFrame, *, rotation: Rotation = 0, device: int | None = None) -> Picture:
    """Describes `native`; copies nothing.

    Args:
        native: as the decoder returned it.
        rotation: clockwise degrees, see `clockwise`.
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
    )
