"""Room for boxes before NMS on the device: enough to measure accuracy with, little in operation."""

from __future__ import annotations

import pytest

from streamd.engine.tensorrt import TensorRtSettings
from streamd.engine.tensorrt.decode import CANDIDATES, MANY_CANDIDATES, capacity
from streamd.heads import DetectSettings
from streamd.heads.select import open_head
from streamd.heads.yolov5_cat import Yolov5CatSettings
from streamd.models.evaluate import COCO_DETECT
from streamd.types import DecodePlan, ModelSpec, TensorSpec

SPEC = ModelSpec(
    "m.onnx", "", "m", TensorSpec("images", (-1, 3, 640, 640), "float32"),
    (TensorSpec("out", (-1, 25200, 85), "float32"),), tuple(f"class {i}" for i in range(80)),
)  # fmt: skip


def plan(detect: DetectSettings) -> DecodePlan:
    found = open_head(Yolov5CatSettings(), SPEC, detect).plan
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("detect", "expected"),
    [
        (DetectSettings(), CANDIDATES),
        (DetectSettings(conf=0.1), CANDIDATES),
        (DetectSettings(conf=0.01), MANY_CANDIDATES),
        (DetectSettings(multi_label=True), MANY_CANDIDATES),
        (COCO_DETECT, MANY_CANDIDATES),
    ],
)
def test_accuracy_is_measured_with_all_boxes(detect: DetectSettings, expected: int) -> None:
    assert capacity(plan(detect), TensorRtSettings().max_candidates) == expected


def test_the_settings_decide() -> None:
    assert capacity(plan(COCO_DETECT), TensorRtSettings(max_candidates=64).max_candidates) == 64
