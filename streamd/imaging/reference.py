"""The letterbox in plain NumPy: the reference for every backend's preprocessing. Never on the hot path.

Bilinear interpolation takes four taps at half-pixel centres (source = (target + 0.5) × ratio − 0.5, edges clamped),
each plane at its own resolution, and converts to RGB after scaling, as a GPU texture unit and `cv2.resize` do.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from streamd.errors import FrameError
from streamd.types import CENTERED, Box, ColorMatrix, Float32Array, Frame, Letterbox, Picture, Placement, rotated_size

# Kr, Kb of ITU-R BT.601-7, BT.709-6 and BT.2020-2 (non-constant luminance).
COEFFICIENTS: dict[ColorMatrix, tuple[float, float]] = {
    "bt601": (0.299, 0.114),
    "bt709": (0.2126, 0.0722),
    "bt2020": (0.2627, 0.0593),
}

Plane = npt.NDArray[np.float64]


def yuv_to_rgb_matrix(matrix: ColorMatrix, full_range: bool) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The (3, 3) matrix M and (3,) offset o with RGB = M · (YUV − o), for 8-bit code values 0..255."""
    kr, kb = COEFFICIENTS[matrix]
    kg = 1.0 - kr - kb
    luma = 1.0 if full_range else 255.0 / 219.0
    chroma = 1.0 if full_range else 255.0 / 224.0
    m = np.array(
        [
            [luma, 0.0, chroma * 2 * (1 - kr)],
            [luma, -chroma * 2 * kb * (1 - kb) / kg, -chroma * 2 * kr * (1 - kr) / kg],
            [luma, chroma * 2 * (1 - kb), 0.0],
        ]
    )
    return m, np.array([0.0 if full_range else 16.0, 128.0, 128.0])


def _plane(picture: Picture, index: int, width: int, height: int, channels: int = 1, depth: int = 8) -> Plane:
    plane = picture.native.planes[index]
    dtype = np.uint8 if depth == 8 else np.dtype("<u2")
    raw = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[:height]
    samples = np.ascontiguousarray(raw).view(dtype)[:, : width * channels]
    return samples.reshape(height, width, channels).astype(np.float64)


def planes(picture: Picture) -> tuple[list[Plane], bool]:
    """The picture's planes as 8-bit code values in float64, (H, W, C) each, and whether they are YUV.

    Raises:
        ValueError: an unsupported pixel format, or a picture in device memory.
    """
    if picture.device is not None:
        raise ValueError("the reference reads host pictures only")
    width, height = picture.width, picture.height
    half = (width + 1) // 2, (height + 1) // 2
    match picture.format:
        case "yuv420p" | "yuvj420p":
            return [_plane(picture, 0, width, height), _plane(picture, 1, *half), _plane(picture, 2, *half)], True
        case "yuv422p" | "yuvj422p":
            wide = half[0], height
            return [_plane(picture, 0, width, height), _plane(picture, 1, *wide), _plane(picture, 2, *wide)], True
        case "yuv444p" | "yuvj444p":
            return [_plane(picture, i, width, height) for i in range(3)], True
        case "nv12":
            return [_plane(picture, 0, width, height), _plane(picture, 1, *half, channels=2)], True
        case "p010le":
            # Ten bits in the upper part of sixteen: dividing by 256 gives the 8-bit scale.
            luma = _plane(picture, 0, width, height, depth=16) / 256
            return [luma, _plane(picture, 1, *half, channels=2, depth=16) / 256], True
        case "yuv420p10le":
            return [
                _plane(picture, 0, width, height, depth=10) / 4,
                _plane(picture, 1, *half, depth=10) / 4,
                _plane(picture, 2, *half, depth=10) / 4,
            ], True
        case "rgb24":
            return [_plane(picture, 0, width, height, channels=3)], False
        case "bgr24":
            return [_plane(picture, 0, width, height, channels=3)[:, :, ::-1]], False
        case "gray":
            return [np.repeat(_plane(picture, 0, width, height), 3, axis=2)], False
        case other:
            raise ValueError(f"the reference does not know pixel format {other}")


def _axis(out_size: int, origin: float, size: float, full: int, plane_size: int) -> tuple[npt.NDArray[np.int64], ...]:
    """Lower tap, upper tap and (as float) the upper tap's weight for each output pixel along one axis."""
    # Positions in whole-picture pixels first, so that a roi shares the sampling grid of the whole picture.
    ratio = plane_size / full
    position = ((np.arange(out_size) + 0.5) * (size / out_size) + origin) * ratio - 0.5
    position = np.clip(position, 0, plane_size - 1)
    low = np.floor(position).astype(np.int64)
    return low, np.minimum(low + 1, plane_size - 1), position - low


def _bilinear(plane: Plane, roi: Box, width: int, height: int, full: tuple[int, int]) -> Plane:
    x0, x1, fx = _axis(width, roi.x, roi.width, full[0], plane.shape[1])
    y0, y1, fy = _axis(height, roi.y, roi.height, full[1], plane.shape[0])
    fx_, fy_ = fx[None, :, None], fy[:, None, None]
    top = plane[y0][:, x0] * (1 - fx_) + plane[y0][:, x1] * fx_
    bottom = plane[y1][:, x0] * (1 - fx_) + plane[y1][:, x1] * fx_
    result: Plane = top * (1 - fy_) + bottom * fy_
    return result


def analysed_part(frame: Frame) -> Box:
    """The part of the upright picture to scale: the crop, or all of it.

    Raises:
        FrameError: the crop does not lie inside the picture.
    """
    roi = frame.roi or Box(0, 0, frame.width, frame.height)
    if roi.x < 0 or roi.y < 0 or roi.x + roi.width > frame.width or roi.y + roi.height > frame.height:
        raise FrameError(
            f"stream {frame.stream}: crop {roi.width}×{roi.height} at {roi.x},{roi.y} does not lie inside the "
            f"{frame.width}×{frame.height} picture"
        )
    return roi


def coded_roi(roi: Box, picture: Picture) -> Box:
    """`roi` of the upright picture, in the coded picture's pixels."""
    if picture.mirrored:
        width, _ = rotated_size(picture.width, picture.height, picture.rotation)
        roi = Box(width - roi.x - roi.width, roi.y, roi.width, roi.height)
    match picture.rotation:
        case 90:
            return Box(roi.y, picture.height - roi.x - roi.width, roi.height, roi.width)
        case 180:
            return Box(picture.width - roi.x - roi.width, picture.height - roi.y - roi.height, roi.width, roi.height)
        case 270:
            return Box(picture.width - roi.y - roi.height, roi.x, roi.height, roi.width)
        case _:
            return roi


def letterbox_rgb(
    frame: Frame,
    input_width: int,
    input_height: int,
    *,
    pad_value: int = 114,
    color: str = "RGB",
    placement: Placement = CENTERED,
) -> tuple[Float32Array, Letterbox]:
    """Letterboxes one frame.

    Returns:
        (input_height, input_width, 3) float32 code values 0..255, not rounded, and the mapping back.
    """
    picture = frame.picture
    box = Letterbox.fit(analysed_part(frame), input_width, input_height, placement, pixel_aspect=picture.pixel_aspect)
    width, height = rotated_size(box.content_width, box.content_height, picture.rotation)
    roi = coded_roi(box.roi, picture)
    sources, yuv = planes(picture)
    scaled = np.concatenate(
        [_bilinear(p, roi, width, height, (picture.width, picture.height)) for p in sources], axis=2
    )
    if yuv:
        full_range = picture.full_range or picture.format.startswith("yuvj")
        matrix, offset = yuv_to_rgb_matrix(picture.matrix, full_range)
        scaled = np.clip((scaled - offset) @ matrix.T, 0, 255)
    # np.rot90 rotates counter-clockwise.
    scaled = np.rot90(scaled, -picture.rotation // 90)
    if picture.mirrored:
        scaled = scaled[:, ::-1]
    if color == "BGR":
        scaled = scaled[:, :, ::-1]
    out = np.full((input_height, input_width, 3), float(pad_value), np.float32)
    out[box.pad_y : box.pad_y + box.content_height, box.pad_x : box.pad_x + box.content_width] = scaled
    return out, box


def preprocess(
    frames: Sequence[Frame],
    input_width: int,
    input_height: int,
    *,
    pad_value: int = 114,
    color: str = "RGB",
    scale: float = 1 / 255,
    mean: Sequence[float] = (0, 0, 0),
    std: Sequence[float] = (1, 1, 1),
    placement: Placement = CENTERED,
) -> tuple[Float32Array, list[Letterbox]]:
    """Letterboxes and normalises a batch: (B, 3, input_height, input_width) float32 and the mappings back.

    A value is (pixel · scale − mean) / std, mean and std in the order of `color`.
    """
    pairs = [
        letterbox_rgb(f, input_width, input_height, pad_value=pad_value, color=color, placement=placement)
        for f in frames
    ]
    scaled = np.stack([image for image, _ in pairs]).astype(np.float64) * scale
    batch = ((scaled - np.array(mean)) / np.array(std)).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(batch, dtype=np.float32), [box for _, box in pairs]
