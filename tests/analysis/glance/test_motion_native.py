"""The compiled step of motion gives what NumPy's gives, to the last bit."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from glance_day import TROUBLES, Noise, troubled
from hypothesis import given, settings
from hypothesis import strategies as st

from streamd.analysis.glance import COLUMNS, ROWS, Glance, Luma
from streamd.analysis.glance import motion_native as module
from streamd.analysis.glance.motion import Motion, Seen
from streamd.analysis.glance.motion_native import Functions, library, warm
from streamd.analysis.glance.moved import Moved
from streamd.analysis.glance.picture import Grid, mean_of
from streamd.analysis.glance.places import cells_of
from streamd.analysis.glance.score import elsewhere

FOLDER = Path(module.__file__).parent
STATE = ("_background", "_past", "_noise", "_limit", "_distance", "_stand", "_stand_ns", "_boxed_ns")
CLIPS = Path(os.environ.get("STREAMD_TEST_DATA", "/nowhere")) / "videos"
WIDTH, HEIGHT = 640, 360
FRAME_NS = 40_000_000


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> Functions:
    """Compiled here, whatever was installed, with every warning an error."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler is not None, "a C compiler is needed, such as Debian's gcc"
    built = tmp_path_factory.mktemp("native") / "motion.so"
    flags = ["-O3", "-ffp-contract=off", "-std=c11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    sources = [str(FOLDER / f"{name}.c") for name in ("motion", "whole", "score", "boxes")]
    subprocess.run([compiler, *flags, "-o", str(built), *sources, "-lm"], check=True)
    found = library(str(built))
    assert found is not None
    return found


class Twins:
    """Both implementations on the same pictures."""

    def __init__(self, functions: Functions, seed: int, **values: Any) -> None:
        self.numpy, self.native = Motion(native=None, **values), Motion(native=functions, **values)
        self.rng = np.random.default_rng(seed)
        self.now_ns = 10**15
        self.seen: set[str] = set()
        self.earlier: Seen | None = None

    def step(self, luma: Luma) -> Moved:
        """One picture, and now and then what the network says of it."""
        self.now_ns += FRAME_NS
        glance = Glance(luma, self.now_ns, 0, None, 1920, 1080, 0, False, False, 0, 0)
        first, second = (motion.step(glance) for motion in (self.numpy, self.native))
        np.testing.assert_array_equal(first.cells, second.cells)
        for name in ("score", "threshold", "share", "light", "shift", "place", "shaken", "moving"):
            assert getattr(first, name) == getattr(second, name), name
        assert self.numpy.cluttered == self.native.cluttered
        self._compare(luma, first)
        if first.share and self.rng.random() < 0.3:
            self._answer(glance, first, second)
        for name in STATE:
            np.testing.assert_array_equal(getattr(self.numpy, name), getattr(self.native, name), err_msg=name)
        for name in ("_level", "_learned_s", "_shaken_ns", "threshold", "_switched"):
            assert getattr(self.numpy, name) == getattr(self.native, name), name
        self.seen |= {name for name in ("light", "shaken", "moving") if getattr(first, name)}
        if any(first.shift):
            self.seen.add("shift")
        return first

    def _compare(self, luma: Luma, moved: Moved) -> None:
        """With a picture before."""
        if self.earlier is not None:
            both = [motion.changed(luma, moved, self.earlier) for motion in (self.numpy, self.native)]
            assert both[0] == both[1]
            boxes = np.zeros((ROWS, COLUMNS), np.bool_)
            boxes[20:70, int(self.rng.integers(COLUMNS)) :] = True
            functions, limit = self.native._native, self.numpy._limit
            assert functions is not None
            distance = self.numpy._distance
            for seen, there in ((self.earlier, boxes), (self.earlier, None), (None, boxes)):
                assert self.numpy.beyond(moved, seen, there) == self.native.beyond(moved, seen, there)
                before = None if seen is None else seen.cells
                assert functions.elsewhere(moved.cells, before, there) == elsewhere(
                    distance, limit, moved.cells, before, there
                )
            self.seen |= {"changed"} if both[0] else set()
        if self.rng.random() < 0.5:
            self.earlier = Seen(luma, moved.cells)

    def _answer(self, glance: Glance, first: Moved, second: Moved) -> None:
        boxes = np.zeros((ROWS, COLUMNS), np.bool_)
        if self.rng.random() < 0.6:
            y, x = int(self.rng.integers(ROWS - 20)), int(self.rng.integers(COLUMNS - 20))
            boxes[y : y + 20, x : x + 20] = True
        moving = boxes & (np.arange(COLUMNS) % 2 == 0) if self.rng.random() < 0.5 else None
        for motion, moved in ((self.numpy, first), (self.native, second)):
            motion.answer(moved, boxes, moving)
            motion.absorb(glance, moved)

    def reset(self) -> None:
        self.numpy.reset()
        self.native.reset()


def _small(picture: npt.NDArray[np.uint8]) -> Luma:
    return mean_of(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), Grid(WIDTH, HEIGHT), 0)


def _day(clip: Path, active: int, pause: int) -> Iterator[Luma]:
    """Pieces of a clip, with every disturbance of `glance_day` between them."""
    capture = cv2.VideoCapture(str(clip))
    rng = np.random.default_rng(4)
    noise = Noise(HEIGHT, WIDTH, rng)
    for trouble in TROUBLES:
        for _ in range(active):
            read, picture = capture.read()
            assert read, f"{clip} has too few frames"
            scene = cv2.resize(picture, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
            yield _small(scene)
        for i in range(pause):
            yield _small(troubled(scene, trouble, i, pause, rng, noise))


@pytest.mark.parametrize("clip", ["vtest.avi", "4ku_traffic.mp4", "person-bicycle-car-detection.mp4"])
def test_days_of_real_clips(functions: Functions, clip: str) -> None:
    if not (CLIPS / clip).is_file():
        pytest.skip("no real clips: STREAMD_TEST_DATA")
    twins = Twins(functions, 1)
    for luma in _day(CLIPS / clip, 40, 60):
        twins.step(luma)
    assert twins.seen == {"light", "shaken", "moving", "shift", "changed"}
    assert not twins.native.learning, "the rarer steps of learning, too"


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_pictures_of_all_kinds(functions: Functions, data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    ignored = rng.random((ROWS, COLUMNS)) < 0.2 if data.draw(st.booleans()) else None
    twins = Twins(functions, seed, ignored=ignored, sensitivity=data.draw(st.sampled_from([None, 2.0, 9.0])))
    y, x = np.mgrid[0:ROWS, 0:COLUMNS]
    scene = 110 + 60 * np.sin(x / data.draw(st.floats(1, 20))) + 50 * np.cos(y / data.draw(st.floats(1, 20)))
    kinds = st.sampled_from(["still", "sparks", "object", "shift", "gain", "other", "flat", "white", "reset", "pause"])
    for kind in data.draw(st.lists(kinds, min_size=4, max_size=12)):
        if kind == "reset":
            twins.reset()
        if kind == "pause":
            twins.now_ns += int(rng.integers(1, 3 * 10**9))
        for i in range(int(rng.integers(1, 8))):
            level = scene.copy()
            if kind == "sparks":
                level.flat[rng.integers(0, level.size, 150)] += 60
            elif kind == "object":
                level[30:50, 2 + 5 * i : 20 + 5 * i] += 40
            elif kind == "shift":
                level = np.roll(level, (int(rng.integers(-1, 2)), int(rng.integers(-1, 2))), axis=(0, 1))
            elif kind == "gain":
                level = level * rng.uniform(0.8, 1.2) + rng.uniform(-5, 5)
            elif kind == "other":
                level = rng.uniform(0, 255, level.shape)
            elif kind in ("flat", "white"):
                level[:] = 90 if kind == "flat" else 255
            level += rng.normal(0, 1, level.shape)
            twins.step(np.clip(np.rint(level), 0, 255).astype(np.uint8))


def test_the_map_of_where_it_moves(functions: Functions) -> None:
    rng = np.random.default_rng(2)
    maps = [np.zeros((ROWS, COLUMNS), np.float32) for _ in range(2)]
    for _ in range(20):
        cells = rng.random((ROWS, COLUMNS)) < 0.1
        for heat, chosen in zip(maps, (None, functions), strict=True):
            warm(heat, cells, 0.07, chosen)
    np.testing.assert_array_equal(maps[0], maps[1])
    assert 0.01 < maps[0].mean() < 0.1


def test_a_library_of_another_kind_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "other.so"
    other.write_bytes(b"not a library")
    assert library(str(other)) is None
    assert library(str(tmp_path / "none.so")) is None


@given(
    st.lists(st.tuples(*[st.floats(-500, 5000, width=32)] * 4), max_size=12),
    st.tuples(st.integers(1, 4096), st.integers(1, 4096)),
    st.sampled_from([0, 90, 180, 270]),
    st.booleans(),
)
def test_cells_of_boxes(
    functions: Functions, boxes: list[tuple[float, ...]], size: tuple[int, int], rotation: Any, mirrored: bool
) -> None:
    """Also of boxes that reach beyond the picture, and of columns of a larger array."""
    corners = np.array(boxes, np.float32).reshape(-1, 4)
    shape = (*size, rotation, mirrored)
    wanted = cells_of(corners, shape, None)
    assert (cells_of(corners, shape, functions) == wanted).all()
    wide = np.concatenate((corners, corners), axis=1)
    assert (cells_of(wide[:, 4:], shape, functions) == wanted).all()
