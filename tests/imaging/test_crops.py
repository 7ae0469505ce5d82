"""Parts of pictures are copied exactly, whatever the pixel format and whichever way up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from streamd.imaging.crops import CropRefused, bgr_frame, cut
from streamd.imaging.letterbox import HostLetterbox
from streamd.types import Box
from tests.imaging.test_letterbox import SUPPORTED, make_frame

PART = Box(64, 40, 96, 70)


def seen(frame: Any, width: int, height: int) -> Any:
    into = np.zeros((height, width, 3), np.uint8)
    HostLetterbox(width, height)(frame, into)
    return into


@pytest.mark.parametrize("fmt", SUPPORTED)
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_part_is_what_the_whole_picture_shows_there(fmt: str, rotation: Any, mirrored: bool) -> None:
    frame = make_frame(fmt=fmt, rotation=rotation, mirrored=mirrored)
    part, size = cut(frame, PART, 1e6)
    assert (part.width, part.height) == (96, 70)
    assert size == sum(len(memoryview(plane)) for plane in part.picture.native.planes)
    np.testing.assert_array_equal(seen(part, 48, 36), seen(replace(frame, roi=PART), 48, 36))


@pytest.mark.parametrize("fmt", ["yuv420p", "nv12", "yuv422p", "rgb24"])
@pytest.mark.parametrize("size", [(322, 240), (321, 239)])
def test_odd_borders_grow_by_one_pixel_at_most(fmt: str, size: tuple[int, int]) -> None:
    frame = make_frame(*size, fmt=fmt)
    odd = Box(size[0] - 61, size[1] - 41, 61, 41)
    part, _ = cut(frame, odd, 1e6)
    grown = Box(odd.x // 2 * 2, odd.y // 2 * 2, size[0] - odd.x // 2 * 2, size[1] - odd.y // 2 * 2)
    expected = odd if fmt == "rgb24" else grown
    assert (part.width, part.height) == (expected.width, expected.height)
    np.testing.assert_array_equal(seen(part, 32, 32), seen(replace(frame, roi=expected), 32, 32))


def test_the_copy_outlives_the_picture() -> None:
    image = np.full((40, 60, 3), (10, 20, 30), np.uint8)
    frame = bgr_frame(make_frame(), image)
    part, size = cut(frame, Box(3, 5, 20, 10), 600)
    assert size == 600
    planes: Any = frame.picture.native.planes
    planes[0][:] = 0
    np.testing.assert_array_equal(seen(part, 20, 10), np.full((10, 20, 3), (30, 20, 10)))


@pytest.mark.parametrize(
    ("change", "most", "reason"),
    [({}, PART.width * PART.height, "memory"), ({"format": "yuv410p"}, 1e6, "format"), ({"device": 0}, 1e6, "device")],
)
def test_what_cannot_be_copied_says_why(change: dict[str, Any], most: float, reason: str) -> None:
    frame = make_frame()
    with pytest.raises(CropRefused, match=f"^{reason}$"):
        cut(replace(frame, picture=replace(frame.picture, **change)), PART, most)
