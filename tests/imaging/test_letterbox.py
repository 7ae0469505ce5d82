"""The CPU letterbox against the NumPy reference, over pixel formats, geometries and rotations."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from streamd.errors import FrameError
from streamd.imaging.letterbox import HostLetterbox
from streamd.imaging.reference import letterbox_rgb
from streamd.types import Box, ColorMatrix, Frame, Picture, Rotation

SUPPORTED = [
    "yuv420p", "yuvj420p", "yuv422p", "yuv444p", "nv12", "yuv420p10le", "p010le", "gray", "rgb24", "bgr24",
]  # fmt: skip


def smooth(height: int, width: int) -> npt.NDArray[np.uint8]:
    """An RGB picture of slow gradients and one bright box: where scalers differ least, geometry shows most."""
    y, x = np.mgrid[0:height, 0:width]
    image = np.stack([x * 200 / width + 20, y * 200 / height + 20, (x + y) * 100 / (width + height) + 60], axis=2)
    image[height // 4 : height // 2, width // 4 : width // 3] = (220, 40, 90)
    return image.astype(np.uint8)


def make_frame(
    width: int = 322,
    height: int = 240,
    fmt: str = "yuv420p",
    *,
    matrix: ColorMatrix = "bt601",
    full_range: bool = False,
    rotation: Rotation = 0,
    roi: Box | None = None,
) -> Frame:
    import av

    native = av.VideoFrame.from_ndarray(smooth(height, width), format="rgb24")
    if fmt != "rgb24":
        native = native.reformat(
            format=fmt,
            dst_colorspace={"bt601": 5, "bt709": 1, "bt2020": 9}[matrix],
            dst_color_range=2 if full_range or fmt.startswith("yuvj") else 1,
        )
    upright = (height, width) if rotation in (90, 270) else (width, height)
    picture = Picture(native, fmt, width, height, matrix, full_range, rotation)
    return Frame("s", picture, *upright, 0, 0, 0, roi=roi)


def compare(frame: Frame, width: int = 224, height: int = 256, color: Any = "RGB") -> npt.NDArray[np.float64]:
    into = np.zeros((height, width, 3), np.uint8)
    box = HostLetterbox(width, height, color=color)(frame, into)
    expected, expected_box = letterbox_rgb(frame, width, height, color=color)
    assert box == expected_box
    difference: npt.NDArray[np.float64] = np.abs(into.astype(np.float64) - expected)
    return difference


@pytest.mark.parametrize("fmt", SUPPORTED)
def test_every_format_equals_the_reference(fmt: str) -> None:
    difference = compare(make_frame(fmt=fmt))
    # Planes are rounded to whole code values between scaling and conversion.
    assert difference.mean() < 0.5
    assert difference.max() < 3


@pytest.mark.parametrize("matrix", ["bt601", "bt709", "bt2020"])
@pytest.mark.parametrize("full_range", [False, True])
def test_matrix_and_range_are_the_streams_own(matrix: ColorMatrix, full_range: bool) -> None:
    assert compare(make_frame(matrix=matrix, full_range=full_range)).mean() < 0.5


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("roi", [None, Box(20, 40, 160, 120)])
def test_rotation_and_crop(rotation: Rotation, roi: Box | None) -> None:
    assert compare(make_frame(rotation=rotation, roi=roi)).mean() < 0.5


@pytest.mark.parametrize(("width", "height"), [(323, 241), (17, 33), (1920, 1080), (224, 256), (640, 16)])
def test_odd_and_equal_sizes(width: int, height: int) -> None:
    assert compare(make_frame(width, height)).mean() < 0.5


def test_bgr_is_rgb_reversed() -> None:
    frame = make_frame()
    rgb, bgr = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64, 3), np.uint8)
    HostLetterbox(64, 64)(frame, rgb)
    HostLetterbox(64, 64, color="BGR")(frame, bgr)
    np.testing.assert_array_equal(rgb, bgr[:, :, ::-1])


def test_padding_is_refilled_only_when_the_geometry_changes() -> None:
    letterbox = HostLetterbox(64, 64, pad_value=7)
    into = np.zeros((64, 64, 3), np.uint8)
    last = letterbox(make_frame(320, 160), into)
    assert (into[0] == 7).all()
    into[0] = 99
    last = letterbox(make_frame(320, 160), into, last)
    assert (into[0] == 99).all(), "the same geometry must not be padded again"
    letterbox(make_frame(160, 320), into, last)
    assert (into[:, 0] == 7).all()


def test_cached_plans_are_bounded() -> None:
    letterbox = HostLetterbox(32, 32)
    into = np.zeros((32, 32, 3), np.uint8)
    for width in range(32, 232, 2):
        letterbox(make_frame(width, 64), into)
    assert len(letterbox._plans) <= 64


def test_a_crop_outside_the_picture_is_named() -> None:
    with pytest.raises(FrameError, match=r"crop 400×300 at 0,0 does not lie inside the 322×240"):
        HostLetterbox(32, 32)(make_frame(roi=Box(0, 0, 400, 300)), np.zeros((32, 32, 3), np.uint8))


def test_a_rare_format_goes_through_swscale_whole() -> None:
    import av

    native = av.VideoFrame.from_ndarray(smooth(120, 160), format="rgb24").reformat(format="yuv411p")
    frame = Frame("s", Picture(native, "yuv411p", 160, 120), 160, 120, 0, 0, 0)
    into = np.zeros((64, 64, 3), np.uint8)
    HostLetterbox(64, 64)(frame, into)
    expected, _ = letterbox_rgb(Frame("s", make_frame(160, 120, "rgb24").picture, 160, 120, 0, 0, 0), 64, 64)
    assert np.abs(into - expected).mean() < 6
