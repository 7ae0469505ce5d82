"""The last steps, and their description for a device that takes them itself."""

from __future__ import annotations

import math

import pytest

from streamd.errors import ConfigError
from streamd.heads import DetectSettings
from streamd.heads.postprocess import Postprocess, with_suppression
from streamd.heads.select import open_head
from streamd.types import DecodePlan
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
