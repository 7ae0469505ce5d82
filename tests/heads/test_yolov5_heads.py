"""YOLOv5's raw heads, by cell and as convolved."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from streamd.errors import ConfigError, ModelError
from streamd.heads import DetectSettings
from streamd.heads.anchors import COCO_ANCHORS
from streamd.heads.postprocess import Postprocess
from streamd.heads.select import open_head, recognise
from streamd.heads.yolov5_heads import Yolov5HeadsSettings, by_cell
from streamd.testing.objects import CLASSES, GRIDS, LABELS, OBJECTS, SIZE, WHOLE, Case, Encoded, logit, spec
from streamd.types import TensorSpec
from tests.gpu.kernel_cases import convolved


def encode(batch: int = 1, index: int = 0) -> Encoded:
    """See `Case.encode`."""
    outputs = [np.full((batch, 3, n, n, 5 + CLASSES), -12.0, np.float32) for n in GRIDS.values()]
    for cx, cy, w, h, obj, cls, score in OBJECTS:
        # The anchor nearest in area; xy and wh must be reachable by the sigmoid forms.
        stride, a = min(
            ((s, a) for s in GRIDS for a in range(3)),
            key=lambda sa: abs(np.log(w * h / np.prod(COCO_ANCHORS[sa[0]][2 * sa[1] : 2 * sa[1] + 2]))),
        )
        aw, ah = COCO_ANCHORS[stride][2 * a : 2 * a + 2]
        column, row = int(cx / stride), int(cy / stride)
        cell = outputs[list(GRIDS).index(stride)][index, a, row, column]
        cell[0] = logit((cx / stride - column + 0.5) / 2)
        cell[1] = logit((cy / stride - row + 0.5) / 2)
        cell[2], cell[3] = logit(np.sqrt(w / aw) / 2), logit(np.sqrt(h / ah) / 2)
        cell[4], cell[5 + cls] = logit(obj), logit(score)
    return spec(*(o.shape for o in outputs)), outputs


def encode_convolved(batch: int = 1, index: int = 0) -> Encoded:
    """See `Case.encode`."""
    outputs = [convolved(head) for head in encode(batch, index)[1]]
    return spec(*(o.shape for o in outputs)), outputs


def contract_cases() -> list[Case]:
    return [
        Case("by cell", encode, "anchor_grids"),
        Case("convolved", encode_convolved, "anchor_grids"),
    ]


def test_transposed_memory_gives_the_same_boxes() -> None:
    """OpenVINO hands out views whose channels are planes; values must not depend on how memory lies."""
    model, outputs = encode()
    detect = DetectSettings(conf=0.05)
    post = Postprocess(open_head(None, model, detect), detect, LABELS)
    views = [np.ascontiguousarray(o.transpose(0, 1, 4, 2, 3)).transpose(0, 1, 3, 4, 2) for o in outputs]
    for a, b in zip(post(outputs, 0, WHOLE), post(views, 0, WHOLE), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("of", [(0, 1, 2), (0, 2)], ids=["all", "mixed"])
def test_heads_as_convolved_give_the_same_candidates(dtype: str, of: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    width = 2 * SIZE
    heads = [random.normal(-1, 2, (2, 3, n, 2 * n, 5 + CLASSES)).astype(dtype) for n in GRIDS.values()]
    given = [convolved(h) if i in of else h for i, h in enumerate(heads)]
    detect = DetectSettings(conf=0.3, multi_label=True)
    image = TensorSpec("images", (-1, 3, SIZE, width), "float32")
    plain, other = (replace(spec(*(o.shape for o in outputs)), input=image) for outputs in (heads, given))
    assert recognise(other) == Yolov5HeadsSettings()
    a, b = open_head(None, plain, detect), open_head(None, other, detect)
    assert a.plan == b.plan
    for index in (0, 1):
        want, got = a.candidates([h.astype(np.float32) for h in heads], index), b.candidates(given, index)
        assert len(want.score) > 1000
        np.testing.assert_array_equal(got.class_id, want.class_id)
        np.testing.assert_array_equal(got.score, want.score)
        np.testing.assert_array_equal(got.xyxy, want.xyxy)
        assert got.score.dtype == got.xyxy.dtype == np.dtype("float32")


def test_a_convolved_head_is_looked_at_in_place() -> None:
    head = np.zeros((3 * 11, 4, 8), np.float16)
    cells = by_cell(head, 3)
    assert cells.shape == (3, 4, 8, 11)
    assert np.shares_memory(cells, head)


def test_convolved_heads_with_other_anchors_are_declared() -> None:
    shapes = [(1, 2 * (5 + CLASSES), n, n) for n in GRIDS.values()]
    settings = Yolov5HeadsSettings(anchors=((1, 2, 3, 4),) * 3)
    assert open_head(settings, spec(*shapes), DetectSettings()).classes == CLASSES
    with pytest.raises(ConfigError, match="no known head has outputs"):
        recognise(spec(*shapes))


@pytest.mark.parametrize("form", [lambda h: h, lambda h: convolved(h)], ids=["by cell", "convolved"])
def test_heads_after_a_sigmoid_are_refused(form: Any) -> None:
    _, logits = encode()
    outputs = [form((1 / (1 + np.exp(-o))).astype(np.float32)) for o in logits]
    head = open_head(None, spec(*(o.shape for o in outputs)), DetectSettings())
    with pytest.raises(ModelError, match=r"m\.onnx: .* they end in a sigmoid\. Export the model without it"):
        head.candidates(outputs, 0)


def test_heads_in_any_order() -> None:
    _, outputs = encode()
    reversed_ = outputs[::-1]
    head = open_head(None, spec(*(o.shape for o in reversed_)), DetectSettings())
    assert head.plan is not None
    assert head.plan.strides == (32, 16, 8)
    assert sorted(head.candidates(reversed_, 0).class_id.tolist()) == [1, 3, 3, 5]


@pytest.mark.parametrize(
    ("shapes", "anchors", "message"),
    [
        ([(1, 34, 40, 40)], None, r"\[3\] anchors expects that many times 5\+C channels.* has out0\[1, 34, 40, 40\]"),
        ([(1, 33, 40, 40), (1, 36, 20, 20)], None, r"the same C in each head; m\.onnx has out0.*out1"),
        ([(1, 33, 40, 40), (1, 3, 20, 20, 12)], None, "the same C in each head"),
        ([(1, 33, 40, 40)], ((1, 2, 3, 4),), r"\[2\] anchors expects"),
        ([(1, 33, 40, 40)], ((1, 2, 3),), "a row needs positive numbers"),
        ([(1, 33, 40, 40)], ((1, 2),) * 2, "2 rows given, but m.onnx has 1 heads"),
        ([(1, 33, 10, 10), (1, 33, 5, 5)], None, r"anchors: must be given for strides \[32, 64\]"),
        ([(1, 33, -1, -1)], None, "expects outputs of shape"),
        ([(1, 40, 40, 33)], None, "stride 8 on a 40×33 grid"),
        ([(1, 15, 40, 40)], None, "expects that many times"),
    ],
)
def test_convolved_heads_that_contradict_the_settings(shapes: Any, anchors: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_head(Yolov5HeadsSettings(anchors=anchors), spec(*shapes), DetectSettings())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Yolov5HeadsSettings(strides=(8, 16)), "2 given, but m.onnx has 3"),
        (Yolov5HeadsSettings(strides=(8, 16, 64)), "stride 64 on a 10×10 grid"),
        (Yolov5HeadsSettings(anchors=((1, 2),) * 3), "needs 6 positive numbers"),
    ],
)
def test_settings_that_contradict_the_model(settings: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_head(settings, encode()[0], DetectSettings())
