"""The last steps, and their description for a device that takes them itself."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamd.errors import ConfigError
from streamd.heads import DetectSettings
from streamd.heads import native as module
from streamd.heads.native import library
from streamd.heads.postprocess import Postprocess, with_suppression
from streamd.heads.select import open_head
from streamd.testing.objects import LABELS
from streamd.types import Box, Candidates, DecodePlan, Letterbox
from tests.compiler import shared_library
from tests.heads import test_yolov8


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Any:
    found = library(shared_library(tmp_path_factory.mktemp("native"), [Path(module.__file__).with_name("boxes.c")]))
    assert found is not None
    return found


PLAN = DecodePlan("class_columns", 6, 0.1, False)


def test_an_unknown_class_is_named_with_near_ones() -> None:
    model, _ = test_yolov8.encode()
    detect = DetectSettings(classes=("clas_3",))
    with pytest.raises(ConfigError, match=r"no class 'clas_3'; did you mean class_3 or"):
        Postprocess(open_head(None, model, detect), detect, LABELS)


def test_a_plan_with_suppression_has_a_floor_for_each_class() -> None:
    detect = DetectSettings(conf=0.3, iou=0.6, max_det=9, classes=("class_1", 4), class_conf={"class_4": 0.1})
    plan = with_suppression(PLAN, LABELS, detect)
    assert plan.class_conf == (math.inf, 0.3, math.inf, math.inf, 0.1, math.inf)
    assert (plan.suppress, plan.iou, plan.max_det, plan.agnostic) == (True, 0.6, 9, False)
    assert with_suppression(PLAN, LABELS, DetectSettings()).class_conf == ()
    with pytest.raises(ConfigError, match="no class 'dog'"):
        with_suppression(PLAN, LABELS, DetectSettings(classes=("dog",)))


def test_a_head_whose_labels_are_wrong_leaves_suppression_to_the_host() -> None:
    model, _ = test_yolov8.encode()
    plan = open_head(None, model, DetectSettings(classes=("clas_3",))).plan
    assert plan is not None
    assert not plan.suppress


WIDE, PART = Letterbox.fit(Box(0, 0, 1920, 1080), 640, 640), Letterbox.fit(Box(100, 50, 300, 300), 640, 640)


@pytest.mark.parametrize("letterboxes", [(WIDE, WIDE, WIDE, WIDE), (WIDE, PART, PART, WIDE)])
@pytest.mark.parametrize("wrong", [None, (5, 5, 5, 9), (-90, -90, -5, -5)], ids=["none", "no size", "outside"])
@pytest.mark.parametrize("compiled", [True, False])
def test_frames_of_a_batch_are_what_each_is_alone(
    letterboxes: tuple[Letterbox, ...], wrong: tuple[float, ...] | None, compiled: bool, native: Any
) -> None:
    rng, outputs = np.random.default_rng(3), []
    for n in (3, 0, 20, 110):
        corners = rng.uniform(150, 400, (n, 4)).astype(np.float32)
        corners[:, 2:] += 260
        if wrong is not None and n == 20:
            corners[7] = wrong
        score = np.sort(rng.uniform(0.3, 1.0005, n).astype(np.float32))[::-1]
        outputs.append(Candidates(corners, score, rng.integers(0, 6, n).astype(np.int32), True))
    model, _ = test_yolov8.encode()
    post = Postprocess(open_head(None, model, DetectSettings()), DetectSettings(), LABELS)
    post._native = native if compiled else None
    together = post.batch(outputs, letterboxes)
    left_out = 0
    for i, found in enumerate(together):
        alone = post(outputs, i, letterboxes[i])
        for one, other in zip(alone, (found.xyxy, found.score, found.class_id), strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
            assert not any(np.shares_memory(other, part) for part in (outputs[i].xyxy, outputs[i].class_id))
        assert found.rejected == post.rejected
        left_out += sum(found.rejected.values())
    assert (left_out > 0) == (wrong is not None)


@pytest.mark.parametrize("compiled", [True, False])
def test_a_batch_without_boxes(compiled: bool, native: Any) -> None:
    model, _ = test_yolov8.encode()
    post = Postprocess(open_head(None, model, DetectSettings()), DetectSettings(), LABELS)
    post._native = native if compiled else None
    none = Candidates(np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int32), True)
    assert [len(found.score) for found in post.batch([none, none], [WIDE, PART])] == [0, 0]


@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-3, 1, 400, 2e6]))
@settings(max_examples=60, deadline=None)
def test_compiled_boxes_are_numpys_to_the_bit(native: Any, seed: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    given_, letterboxes = [], []
    for n in rng.integers(0, 30, 6).tolist():
        corners = rng.uniform(-spread, 640, (n, 4)).astype(np.float32)
        corners[:, 2:] = corners[:, :2] + rng.uniform(0, spread, (n, 2)).astype(np.float32)
        corners[rng.random(corners.shape) < 0.002] = rng.choice([np.nan, np.inf, -np.inf])
        score = rng.choice([0, 0.3, 1, 1.0005, 1.01, -0.1], n, p=[0.05, 0.5, 0.3, 0.13, 0.01, 0.01])
        given_.append(Candidates(corners, score.astype(np.float32), rng.integers(0, 6, n).astype(np.int32), True))
        letterboxes.append(WIDE if rng.random() < 0.5 else PART)
    model, _ = test_yolov8.encode()
    post = Postprocess(open_head(None, model, DetectSettings()), DetectSettings(), LABELS)
    post._native = native
    for i, found in enumerate(post.batch(given_, letterboxes)):
        for one, other in zip(post(given_, i, letterboxes[i]), found, strict=False):
            np.testing.assert_array_equal(one, other)
        assert found.rejected == post.rejected


def test_without_the_library_numpy_does_it(tmp_path: Path) -> None:
    assert library(str(tmp_path / "none.so")) is None
