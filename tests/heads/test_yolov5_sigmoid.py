"""YOLOv5's heads after a sigmoid, joined."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from streamd.errors import ConfigError, ModelError
from streamd.heads import DetectSettings
from streamd.heads.anchors import COCO_ANCHORS
from streamd.heads.select import open_head
from streamd.heads.yolov5_sigmoid import Yolov5SigmoidSettings
from streamd.testing.objects import CELLS, CLASSES, GRIDS, Case, Encoded, spec
from tests.heads import test_yolov5_heads


def encode(batch: int = 1, index: int = 0) -> Encoded:
    """See `Case.encode`."""
    _, heads = test_yolov5_heads.encode(batch, index)
    joined = np.concatenate([o.reshape(batch, -1, 5 + CLASSES) for o in heads], axis=1)
    shares = (1 / (1 + np.exp(-joined))).astype(np.float32)
    return spec(shares.shape, head={"kind": "yolov5_sigmoid"}), [shares]


def contract_cases() -> list[Case]:
    return [Case("", encode, "anchor_rows", recognised=False)]


@pytest.mark.parametrize("value", [1.01, -0.01, np.nan])
def test_what_is_no_sigmoid_is_refused(value: float) -> None:
    model, outputs = encode()
    outputs[0][0, 77, 3] = value
    with pytest.raises(ModelError, match="does not end in a sigmoid"):
        open_head(None, model, DetectSettings()).candidates(outputs, 0)


def test_sigmoid_rows_in_another_order_of_strides() -> None:
    """The order is the settings' own, and so are the anchors: a wrong one gives other boxes."""
    _, outputs = encode()
    ends = np.cumsum([3 * n * n for n in GRIDS.values()])[:-1]
    coarse_first = np.concatenate(np.split(outputs[0], ends, axis=1)[::-1], axis=1)
    model = spec(coarse_first.shape)
    settings = Yolov5SigmoidSettings(strides=(32, 16, 8))
    found = open_head(settings, model, DetectSettings()).candidates([coarse_first], 0)
    want = open_head(Yolov5SigmoidSettings(), model, DetectSettings()).candidates(outputs, 0)
    for box, class_id in zip(want.xyxy, want.class_id, strict=True):
        assert np.abs(found.xyxy[found.class_id == class_id] - box).max(axis=1).min() < 1e-3
    other = Yolov5SigmoidSettings(anchors=tuple(tuple(2 * v for v in row) for row in COCO_ANCHORS.values()))
    twice = open_head(other, model, DetectSettings()).candidates(outputs, 0)
    np.testing.assert_allclose(twice.xyxy[:, 2] - twice.xyxy[:, 0], 2 * (want.xyxy[:, 2] - want.xyxy[:, 0]), rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "shapes", "message"),
    [
        (Yolov5SigmoidSettings(), [(1, 3, n, n, 11) for n in GRIDS.values()], "yolov5_sigmoid expects"),
        (Yolov5SigmoidSettings(), [(1, 10, CELLS)], "make 6300 rows at input 320×320"),
        (Yolov5SigmoidSettings(strides=(8, 16)), [(1, 3 * CELLS, 11)], "make 6000 rows"),
        (Yolov5SigmoidSettings(strides=(8, 16, 48)), [(1, 3 * CELLS, 11)], "do not divide"),
        (Yolov5SigmoidSettings(strides=(8, 16, 64)), [(1, 3 * CELLS, 11)], r"anchors: must be given"),
        (Yolov5SigmoidSettings(anchors=((1, 2),)), [(1, 3 * CELLS, 11)], "1 rows given for 3 strides"),
        (Yolov5SigmoidSettings(anchors=((1, 2, 3),) * 3), [(1, 3 * CELLS, 11)], "positive numbers, .w,h per anchor"),
    ],
)
def test_settings_that_contradict_the_model(settings: Any, shapes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_head(settings, spec(*shapes), DetectSettings())
