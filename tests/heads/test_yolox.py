"""YOLOX's rows, relative to cells and in pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from streamd.errors import ConfigError, ModelError
from streamd.heads import DetectSettings
from streamd.heads.select import open_head
from streamd.heads.yolox import YoloxSettings
from streamd.testing.objects import CELLS, CLASSES, GRIDS, OBJECTS, SIZE, Case, Encoded, spec

DECODED = {"kind": "yolox", "decoded": True}


def encode(batch: int = 1, index: int = 0) -> Encoded:
    """See `Case.encode`."""
    grids = [np.zeros((batch, n, n, 5 + CLASSES), np.float32) for n in GRIDS.values()]
    for cx, cy, w, h, obj, cls, score in OBJECTS:
        stride = min(GRIDS, key=lambda s: abs(np.log(w * h) - 2 * np.log(4 * s)))
        column, row = int(cx / stride), int(cy / stride)
        cell = grids[list(GRIDS).index(stride)][index, row, column]
        cell[:5] = cx / stride - column, cy / stride - row, np.log(w / stride), np.log(h / stride), obj
        cell[5 + cls] = score
    rows = np.concatenate([g.reshape(batch, -1, 5 + CLASSES) for g in grids], axis=1)
    return spec(rows.shape), [rows]


def encode_decoded(batch: int = 1, index: int = 0) -> Encoded:
    """See `Case.encode`. Boxes of nothing are at their cells, as a network's are."""
    rows = np.zeros((batch, CELLS, 5 + CLASSES), np.float32)
    first = 0
    for stride, n in GRIDS.items():
        y, x = np.indices((n, n)).reshape(2, -1)
        rows[:, first : first + n * n, :2] = np.stack([x, y], axis=1) * stride
        rows[:, first : first + n * n, 2:4] = stride
        first += n * n
    for i, (cx, cy, w, h, obj, cls, score) in enumerate(OBJECTS):
        rows[index, 11 * i, :5] = cx, cy, w, h, obj
        rows[index, 11 * i, 5 + cls] = score
    return spec(rows.shape, head=DECODED), [rows]


def contract_cases() -> list[Case]:
    return [
        Case("relative to cells", encode, None),
        Case("in pixels", encode_decoded, "objectness_rows", recognised=False),
    ]


@pytest.mark.parametrize(
    ("decoded", "message"),
    [(True, r"in pixels: declare model\.head: \{kind: yolox, decoded: true\}"), (False, "relative to cells: declare")],
)
def test_the_other_form_is_refused_at_the_first_frame(decoded: bool, message: str) -> None:
    outputs = (encode_decoded() if decoded else encode())[1]
    settings = YoloxSettings(decoded=not decoded)
    head = open_head(settings, spec(outputs[0].shape), DetectSettings())
    with pytest.raises(ModelError, match=message):
        head.candidates(outputs, 0)


def test_what_has_no_sigmoid_is_refused() -> None:
    model, outputs = encode()
    outputs[0][..., 4:] = -3
    with pytest.raises(ModelError, match=r"not 0 to 1\. Export the model with its sigmoid; if this is YOLOv8's"):
        open_head(None, model, DetectSettings()).candidates(outputs, 0)


def test_strides_of_the_p6_models() -> None:
    grids = {s: SIZE // s for s in (8, 16, 32, 64)}
    rows = np.zeros((1, sum(n * n for n in grids.values()), 5 + CLASSES), np.float32)
    # The last cell: column 4, row 4 of stride 64.
    rows[0, -1, :5] = 0.5, 0.25, np.log(2), np.log(1), 0.9
    rows[0, -1, 5] = 1.0
    head = open_head(YoloxSettings(strides=tuple(grids)), spec(rows.shape), DetectSettings())
    np.testing.assert_allclose(head.candidates([rows], 0).xyxy, [[224, 240, 352, 304]], rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "shape", "message"),
    [
        (YoloxSettings(), (1, CELLS, 5), "yolox expects"),
        (YoloxSettings(), (1, 77, 11), r"strides \[8, 16, 32\] make 2100 rows at input 320×320; m\.onnx has"),
        (YoloxSettings(strides=(8, 48)), (1, CELLS, 11), "do not divide"),
    ],
)
def test_settings_that_contradict_the_model(settings: Any, shape: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_head(settings, spec(shape), DetectSettings())
