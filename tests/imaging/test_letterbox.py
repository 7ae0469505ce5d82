"""The CPU letterbox against the NumPy reference, over pixel formats, geometries and rotations."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamd.cli.annotate import upright_bgr
from streamd.errors import FrameError
from streamd.imaging.letterbox import HostLetterbox
from streamd.imaging.reference import letterbox_rgb
from streamd.types import CENTERED, Box, ColorMatrix, Frame, Letterbox, Picture, Placement, Rotation

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
    mirrored: bool = False,
    pixel_aspect: float = 1.0,
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
    picture = Picture(native, fmt, width, height, matrix, full_range, rotation, None, mirrored, pixel_aspect)
    return Frame("s", picture, *upright, 0, 0, 0, roi=roi)


def compare(
    frame: Frame, width: int = 224, height: int = 256, color: Any = "RGB", placement: Placement = CENTERED
) -> npt.NDArray[np.float64]:
    into = np.zeros((height, width, 3), np.uint8)
    box = HostLetterbox(width, height, color=color, placement=placement)(frame, into)
    expected, expected_box = letterbox_rgb(frame, width, height, color=color, placement=placement)
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
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("roi", [None, Box(20, 40, 160, 120)])
def test_orientation_and_crop(rotation: Rotation, mirrored: bool, roi: Box | None) -> None:
    assert compare(make_frame(rotation=rotation, mirrored=mirrored, roi=roi)).mean() < 0.5


@pytest.mark.parametrize("rotation", [0, 90])
@pytest.mark.parametrize("fmt", ["yuyv422", "bgra", "yuv420p12le", "gray12le"])
def test_crop_of_formats_that_swscale_converts(rotation: Rotation, fmt: str) -> None:
    """Webcams and industrial cameras: a crop is what it is for every other format."""
    roi = Box(21, 40, 160, 121)
    whole = make_frame(rotation=rotation, roi=roi, fmt="gray" if fmt == "gray12le" else "rgb24")
    native = whole.picture.video_frame().reformat(format=fmt)
    other = Frame("s", Picture(native, fmt, 322, 240, "bt601", False, rotation), whole.width, whole.height, 0, 0, 0)
    other.roi = roi
    into = np.zeros((256, 224, 3), np.uint8)
    box = HostLetterbox(224, 256)(other, into)
    expected, expected_box = letterbox_rgb(whole, 224, 256)
    assert box == expected_box
    assert np.abs(into - expected).mean() < 2


def _corners(picture: npt.NDArray[Any]) -> list[int]:
    """Which of four quarters is where, by its grey level: upper left, upper right, lower left, lower right."""
    h, w = picture.shape[0] // 4, picture.shape[1] // 4
    return [round(float(picture[y, x].mean()) / 60) for y in (h, -h) for x in (w, -w)]


@pytest.mark.parametrize(
    ("rotation", "mirrored", "upright"),
    [
        (0, False, [1, 2, 3, 4]), (0, True, [2, 1, 4, 3]), (180, False, [4, 3, 2, 1]), (180, True, [3, 4, 1, 2]),
        (90, False, [3, 1, 4, 2]), (90, True, [1, 3, 2, 4]), (270, False, [2, 4, 1, 3]), (270, True, [4, 2, 3, 1]),
    ],
)  # fmt: skip
def test_where_the_corners_are(rotation: Rotation, mirrored: bool, upright: list[int]) -> None:
    """The eight orientations of Exif, by hand: letterbox and reference could be wrong together."""
    import av

    pixels = np.zeros((64, 64, 3), np.uint8)
    for i in range(4):
        pixels[32 * (i // 2) :, 32 * (i % 2) :] = 60 * (i + 1)
    pixels[32:, :32] = 180
    native = av.VideoFrame.from_ndarray(pixels, format="rgb24")
    frame = Frame("s", Picture(native, "rgb24", 64, 64, "bt601", True, rotation, None, mirrored), 64, 64, 0, 0, 0)
    into = np.zeros((64, 64, 3), np.uint8)
    HostLetterbox(64, 64)(frame, into)
    assert _corners(into) == upright
    assert _corners(letterbox_rgb(frame, 64, 64)[0]) == upright
    assert _corners(upright_bgr(frame)) == upright


def test_pixels_that_are_not_square() -> None:
    frame = make_frame(320, 240, pixel_aspect=2.0)
    into = np.zeros((320, 320, 3), np.uint8)
    box = HostLetterbox(320, 320)(frame, into)
    assert (box.content_width, box.content_height, box.pad_y) == (320, 120, 100)
    # Boxes are in stored pixels: the whole picture is the whole picture.
    whole = np.array([[0, 100, 320, 220]], np.float32)
    np.testing.assert_allclose(box.to_source(whole), [[0, 0, 320, 240]])
    assert compare(make_frame(320, 240, pixel_aspect=16 / 11)).mean() < 0.5


PLACEMENTS = [Placement(align="top_left"), Placement("stretch"), Placement("stretch", "top_left")]


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("rotation", [0, 270])
@pytest.mark.parametrize("roi", [None, Box(20, 40, 160, 120)])
def test_other_placements(placement: Placement, rotation: Rotation, roi: Box | None) -> None:
    assert compare(make_frame(rotation=rotation, roi=roi), placement=placement).mean() < 0.5


def test_where_a_picture_lies() -> None:
    wide = Box(10, 20, 200, 100)
    assert Letterbox.fit(wide, 64, 64) == Letterbox(0, 16, 64, 32, wide)
    assert Letterbox.fit(wide, 64, 64, Placement(align="top_left")) == Letterbox(0, 0, 64, 32, wide)
    assert Letterbox.fit(wide, 64, 48, Placement("stretch")) == Letterbox(0, 0, 64, 48, wide)


@given(
    st.sampled_from([CENTERED, *PLACEMENTS]),
    st.tuples(*[st.integers(1, 4000)] * 4),
    st.tuples(*[st.integers(32, 1280)] * 2),
    st.tuples(*[st.floats(0, 1)] * 2),
)
def test_a_point_of_the_picture_comes_back_to_its_place(
    placement: Placement, roi: Any, size: tuple[int, int], at: tuple[float, float]
) -> None:
    """Whatever the placement: the content's corners are the roi's, and what lies between is in proportion."""
    box = Letterbox.fit(Box(*roi), *size, placement)
    x, y = box.pad_x + at[0] * box.content_width, box.pad_y + at[1] * box.content_height
    back = box.to_source(np.array([[box.pad_x, box.pad_y, x, y]], np.float32))[0]
    want = (box.roi.x, box.roi.y, box.roi.x + at[0] * box.roi.width, box.roi.y + at[1] * box.roi.height)
    np.testing.assert_allclose(back, want, rtol=1e-4, atol=1e-3 * max(box.roi.width, box.roi.height))


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
