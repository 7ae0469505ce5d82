"""YOLOv8's and YOLO11's columns."""

from __future__ import annotations

import numpy as np
import pytest

from streamd.errors import ConfigError
from streamd.heads import DetectSettings
from streamd.heads.select import open_head, recognise
from streamd.heads.yolov8 import Yolov8Settings
from streamd.testing.objects import CELLS, CLASSES, GRIDS, OBJECTS, Case, Encoded, spec


def encode(batch: int = 1, index: int = 0) -> Encoded:
    """See `Case.encode`."""
    columns = np.zeros((batch, 4 + CLASSES, CELLS), np.float32)
    for i, (cx, cy, w, h, obj, cls, score) in enumerate(OBJECTS):
        columns[index, :4, 11 * i] = cx, cy, w, h
        columns[index, 4 + cls, 11 * i] = obj * score
    return spec(columns.shape), [columns]


def contract_cases() -> list[Case]:
    return [Case("", encode, "class_columns")]


def test_the_undecoded_form_of_yolov8_is_no_convolved_head_of_yolov5() -> None:
    """Its 144 channels would be 43 classes of 3 anchors."""
    shapes = [(1, 64 + 80, n, n) for n in GRIDS.values()]
    for labels in (("a",) * 80, ()):
        with pytest.raises(ConfigError, match="are YOLOv8's before their decoding"):
            recognise(spec(*shapes, labels=labels))
    assert recognise(spec(*shapes, labels=("a",) * 43)).kind == "yolov5_heads"


def test_settings_that_contradict_the_model() -> None:
    with pytest.raises(ConfigError, match="yolov8 expects"):
        open_head(Yolov8Settings(), spec((1, 4, 6)), DetectSettings())
