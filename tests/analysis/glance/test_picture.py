"""The small picture is the mean of the frame's luma, whatever the format and whoever computes it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest

from streamd.analysis.glance import COLUMNS, ROWS, Luma
from streamd.analysis.glance import native as module
from streamd.analysis.glance.native import library
from streamd.analysis.glance.picture import LAYOUTS, MOST_ROWS, Glancer, Layout
from streamd.errors import BackendError
from streamd.sources.picture import picture_of
from streamd.types import Frame, Picture

SOURCE = Path(module.__file__).with_name("glance.c")
DEEP = [name for name, layout in LAYOUTS.items() if layout.size == 2]


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Compiled here, whatever was installed, with every warning an error."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler is not None, "a C compiler is needed, such as Debian's gcc"
    built = tmp_path_factory.mktemp("native") / "glance.so"
    flags = ["-O3", "-std=c11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, "-o", str(built), str(SOURCE)], check=True)
    found = library(str(built))
    assert found is not None
    return found


def _frame(native: Any) -> Frame:
    picture = picture_of(native)
    return Frame("cam", picture, picture.width, picture.height, 5, 6, 7, 8, epoch=2, seq=9)


def _luma(native: Any, name: str) -> npt.NDArray[np.int64]:
    """Sample by sample, (height, width), at the format's own depth."""
    layout = LAYOUTS[name]
    plane = native.planes[0]
    raw = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
    rows = raw[: native.height].view("<u2" if layout.size == 2 else np.uint8)
    return rows[:, layout.offset :: layout.step][:, : native.width].astype(np.int64)


def _expected(luma: npt.NDArray[np.int64], shift: int) -> npt.NDArray[np.uint8]:
    """By the definition, from running sums."""
    height, width = luma.shape
    out = np.empty((ROWS, COLUMNS), np.uint8)
    left = np.arange(COLUMNS) * width // COLUMNS
    right = np.maximum(np.arange(1, COLUMNS + 1) * width // COLUMNS, left + 1)
    for r in range(ROWS):
        top = r * height // ROWS
        tall = max((r + 1) * height // ROWS - top, 1)
        n = min(tall, MOST_ROWS)
        rows = [top + (2 * i + 1) * tall // (2 * n) for i in range(n)]
        upto = np.concatenate(([0], np.cumsum(luma[rows].sum(axis=0))))
        count = n * (right - left) << shift
        out[r] = np.minimum((2 * (upto[right] - upto[left]) + count) // (2 * count), 255)
    return out


def _noise(name: str, width: int, height: int) -> Any:
    """A decoder's picture whose planes are noise, as valid samples of the format."""
    frame = av.VideoFrame(width, height, name)
    rng = np.random.default_rng(7)
    layout = LAYOUTS[name]
    for plane in frame.planes:
        into = np.frombuffer(memoryview(plane), np.uint8)
        if layout.size == 1:
            into[:] = rng.integers(0, 256, into.size, np.uint8)
            continue
        deep = rng.integers(0, 1 << (8 + layout.shift), into.size // 2).astype("<u2")
        if name in ("p010le", "p210le", "p410le"):
            deep &= 0xFFC0
        into.view("<u2")[: deep.size] = deep
    return frame


def _known(name: str) -> bool:
    try:
        av.VideoFrame(64, 64, name)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("name", [name for name in LAYOUTS if _known(name)])
def test_the_mean_is_exact_in_every_format(name: str, native: Any) -> None:
    made = _noise(name, 322, 190)
    expected = _expected(_luma(made, name), LAYOUTS[name].shift)
    for each in (native, None):
        glance = Glancer(each).take(_frame(made))
        assert glance is not None
        np.testing.assert_array_equal(glance.luma, expected)


@pytest.mark.parametrize("size", [(1920, 1080), (640, 360), (160, 90), (704, 576), (162, 1000), (96, 64), (2, 2)])
def test_the_mean_is_exact_at_every_size(size: tuple[int, int], native: Any) -> None:
    made = _noise("yuv420p", *size)
    expected = _expected(_luma(made, "yuv420p"), 0)
    for each in (native, None):
        glance = Glancer(each).take(_frame(made))
        assert glance is not None
        np.testing.assert_array_equal(glance.luma, expected)
        assert (glance.width, glance.height) == size
        assert (glance.epoch, glance.seq, glance.captured_ns, glance.wall_ns, glance.pts_ns) == (2, 9, 5, 6, 8)


def test_the_installed_library_is_used_where_there_is_one(native: Any) -> None:
    assert Glancer()._native is library()
    assert library("/nowhere/at/all.so") is None
    assert library(str(SOURCE)) is None


@pytest.mark.parametrize("name", ["rgb24", "yuv420p10be"])
def test_formats_that_cannot_be_read_are_named(name: str) -> None:
    glancer = Glancer()
    assert glancer.take(_frame(av.VideoFrame(64, 64, name))) is None
    assert name in glancer.unreadable
    assert glancer.take(_frame(av.VideoFrame(64, 64, "nv12"))) is not None
    assert glancer.unreadable == ""


def test_a_picture_on_a_gpu_is_not_touched() -> None:
    glancer = Glancer()
    picture = picture_of(av.VideoFrame(64, 64, "nv12"), device=0)
    assert glancer.take(Frame("cam", picture, 64, 64, 0, 0, 0)) is None
    assert "GPU" in glancer.unreadable


class OnGpu:
    """Reads pictures on GPU 0, or fails as that may."""

    device = 0
    fails = ""

    def read(self, picture: Picture, layout: Layout) -> Luma:
        if self.fails:
            raise BackendError(self.fails)
        return np.full((ROWS, COLUMNS), layout.shift, np.uint8)


def test_a_picture_on_a_gpu_is_read_there() -> None:
    reader = OnGpu()
    glancer = Glancer(surfaces=reader)

    def take(device: int | None) -> Any:
        return glancer.take(Frame("cam", picture_of(av.VideoFrame(320, 180, "nv12"), device=device), 320, 180, 1, 2, 3))

    glance = take(0)
    assert (glance.luma == 0).all()
    assert (glance.width, glance.height, glance.captured_ns) == (320, 180, 1)
    assert take(1) is None
    assert glancer.unreadable == "the picture is on GPU 1, the model on GPU 0"
    reader.fails = "it is broken"
    assert take(0) is None
    assert glancer.unreadable == "it is broken"
    assert take(None) is not None, "pictures on the host do not depend on it"
    assert glancer.unreadable == ""
    packed = Picture(av.VideoFrame(64, 64, "yuyv422"), "yuyv422", 64, 64, device=0)
    assert glancer.take(Frame("cam", packed, 64, 64, 0, 0, 0)) is None
    assert glancer.unreadable == "the luma of pixel format yuyv422 cannot be read on a GPU"


def _drawn(x: int, y: int, width: int, height: int) -> Any:
    image = np.full((1080 * 3 // 2, 1920), 100, np.uint8)
    image[y : y + height, x : x + width] = 200
    return av.VideoFrame.from_ndarray(image, format="yuv420p")


@pytest.mark.parametrize(("width", "height"), [(3, 40), (40, 3), (2, 60), (8, 8)])
def test_thin_things_are_seen_wherever_they_are(width: int, height: int, native: Any) -> None:
    """Every place at which the sampling could miss them, within a period of rows and columns of the grid."""
    glancer = Glancer(native)
    still = glancer.take(_frame(_drawn(0, 0, 0, 0)))
    assert still is not None
    seen = []
    for step in range(12):
        glance = glancer.take(_frame(_drawn(600 + step, 500 + step, width, height)))
        assert glance is not None
        seen.append(int(np.abs(glance.luma.astype(int) - still.luma).max()))
    # A column of 3 pixels is a quarter of a cell's width, over two cells at worst: 8 to 25 levels of 100.
    assert min(seen) >= 7, seen


def test_upright() -> None:
    made = _noise("yuv420p", 320, 180)
    picture = picture_of(made, rotation=90)
    glance = Glancer().take(Frame("cam", picture, 180, 320, 0, 0, 0))
    assert glance is not None
    turned = glance.upright()
    assert turned.shape == (COLUMNS, ROWS)
    assert turned[0, -1] == glance.luma[0, 0]  # clockwise: the top left corner goes to the top right
    mirrored = Glancer().take(Frame("cam", picture_of(made, mirrored=True), 320, 180, 0, 0, 0))
    assert mirrored is not None
    np.testing.assert_array_equal(mirrored.upright(), mirrored.luma[:, ::-1])
