"""The last steps, and their description for a device that takes them itself."""

from __future__ import annotations

import math

import numpy as np
import pytest

from streamd.errors import ConfigError
from streamd.heads import DetectSettings
from streamd.heads.postprocess import FEW, Postprocess, groups, with_suppression
from streamd.heads.select import open_head
from streamd.types import Box, Candidates, DecodePlan, Letterbox
from tests.heads import test_yolov8
from tests.heads.cases import LABELS

PLAN = DecodePlan("class_columns", 6, 0.1, False)


def test_an_unknown_class_is_named_with_near_ones() -> None:
    model, _ = test_yolov8.encode()
    detect = DetectSettings(classes=("clas_3",))
    with pytest.raises(ConfigError, match=r"no class 'clas_3'; near: class_3"):
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
def test_frames_of_a_batch_are_what_each_is_alone(
    letterboxes: tuple[Letterbox, ...], wrong: tuple[float, ...] | None
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


def test_groups_have_few_boxes() -> None:
    assert groups([]) == [(0, 0)]
    assert groups([5, 0, 7]) == [(0, 3)]
    assert groups([FEW, 1, FEW + 1, FEW - 1, 1, 1]) == [(0, 1), (1, 2), (2, 3), (3, 5), (5, 6)]
