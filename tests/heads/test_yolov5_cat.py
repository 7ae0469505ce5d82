"""YOLOv5's decoded rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from streamd.errors import ConfigError, ModelError
from streamd.heads import DetectSettings
from streamd.heads.select import open_head, recognise
from streamd.heads.yolov5_cat import Yolov5CatSettings
from streamd.testing.objects import CELLS, CLASSES, OBJECTS, Case, Encoded, spec
from tests.heads import test_yolov5_sigmoid


def encode(batch: int = 1, index: int = 0) -> Encoded:
    """See `Case.encode`."""
    rows = np.zeros((batch, 3 * CELLS, 5 + CLASSES), np.float32)
    for i, (cx, cy, w, h, obj, cls, score) in enumerate(OBJECTS):
        rows[index, 7 * i + 3, :5] = cx, cy, w, h, obj
        rows[index, 7 * i + 3, 5 + cls] = score
    return spec(rows.shape), [rows]


def contract_cases() -> list[Case]:
    return [Case("", encode, "objectness_rows")]


def test_multi_label_gives_every_class_above_the_threshold() -> None:
    model, outputs = encode()
    outputs[0][0, 3, 5:] = (0.5, 0.9, 0.0, 0.6, 0.0, 0.0)
    found = open_head(None, model, DetectSettings(multi_label=True, conf=0.4)).candidates(outputs, 0)
    assert sorted(found.class_id[:3].tolist()) == [0, 1, 3]


def test_undecoded_rows_are_refused_where_decoded_ones_are_expected() -> None:
    """By shape they are yolov5_cat; the first frame's values tell, before anything is reported."""
    declaring, outputs = test_yolov5_sigmoid.encode(batch=2)
    model = replace(declaring, head=None)
    assert recognise(model).kind == "yolov5_cat"
    head = open_head(None, model, DetectSettings(conf=0.999))
    with pytest.raises(
        ModelError, match=r'model\.head\.kind: yolov5_sigmoid .*--head .*m\.onnx\.json: {"version":1,"head"'
    ):
        head.candidates(outputs, 1)


def test_decoded_rows_are_looked_at_once() -> None:
    model, outputs = encode()
    head = open_head(None, model, DetectSettings())
    assert len(head.candidates(outputs, 0).score) == 4
    assert len(head.candidates([np.zeros_like(outputs[0])], 0).score) == 0


def test_settings_that_contradict_the_model() -> None:
    with pytest.raises(ConfigError, match=r"yolov5_cat expects|rows"):
        open_head(Yolov5CatSettings(), spec((1, 300, 5)), DetectSettings())
