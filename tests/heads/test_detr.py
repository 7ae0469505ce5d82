"""RT-DETR, D-FINE and DEIM without post-processing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from streamd.errors import ConfigError, ModelError
from streamd.heads import DetectSettings
from streamd.heads.common import sigmoid
from streamd.heads.detr import DetrSettings
from streamd.heads.select import open_head, recognise
from streamd.testing.objects import CLASSES, LABELS, OBJECTS, OVERLAPPING, SIZE, Case, Encoded, logit, spec
from streamd.types import ModelSpec, TensorSpec

QUERIES = 300


def encode_queries(batch: int, index: int) -> tuple[Any, Any]:
    """Boxes (B, N, 4) as fractions of the input and probabilities (B, N, C). What NMS would drop is not there."""
    boxes = np.full((batch, QUERIES, 4), 0.5, np.float32)
    scores = np.full((batch, QUERIES, CLASSES), 1e-3, np.float32)
    for i, (cx, cy, w, h, obj, cls, score) in enumerate(o for o in OBJECTS if o is not OVERLAPPING):
        boxes[index, 3 * i] = np.array([cx, cy, w, h]) / SIZE
        scores[index, 3 * i, cls] = obj * score
    return boxes, scores


def encode(batch: int = 1, index: int = 0) -> Encoded:
    """See `Case.encode`."""
    boxes, scores = encode_queries(batch, index)
    logits = logit(scores).astype(np.float32)
    return spec(logits.shape, boxes.shape), [logits, boxes]


def encode_boxes_first(batch: int = 1, index: int = 0) -> Encoded:
    """See `Case.encode`."""
    model, (logits, boxes) = encode(batch, index)
    return replace(model, outputs=model.outputs[::-1]), [boxes, logits]


def encode_activated(batch: int = 1, index: int = 0) -> Encoded:
    """See `Case.encode`."""
    boxes, scores = encode_queries(batch, index)
    return spec(scores.shape, boxes.shape, head={"kind": "detr", "activated": True}), [scores, boxes]


def contract_cases() -> list[Case]:
    return [
        Case("logits first", encode, None),
        Case("boxes first", encode_boxes_first, None),
        Case("after the sigmoid", encode_activated, None, recognised=False),
    ]


def test_input_that_is_not_square() -> None:
    boxes, scores = encode_queries(1, 0)
    outputs = (TensorSpec("logits", scores.shape, "float32"), TensorSpec("pred_boxes", boxes.shape, "float32"))
    model = ModelSpec("m.onnx", "", "m", TensorSpec("i", (1, 3, 320, 640), "float32"), outputs, LABELS)
    got = open_head(None, model, DetectSettings(conf=0.8)).candidates([logit(scores).astype(np.float32), boxes], 0)
    cx, cy, w, h, *_ = OBJECTS[0]
    np.testing.assert_allclose(got.xyxy[0], [2 * cx - w, cy - h / 2, 2 * cx + w, cy + h / 2], rtol=1e-5)


def test_a_query_has_its_best_class_or_all_of_them() -> None:
    model, (logits, boxes) = encode()
    logits[0, 0, 4] = logit(0.5)
    best = open_head(None, model, DetectSettings()).candidates([logits, boxes], 0)
    every = open_head(None, model, DetectSettings(multi_label=True)).candidates([logits, boxes], 0)
    assert len(every.score) == len(best.score) + 1
    assert 4 in every.class_id.tolist()
    assert 4 not in best.class_id.tolist()


def test_four_classes_are_told_from_boxes_by_name() -> None:
    shapes = ((1, 300, 4), (1, 300, 4))
    with pytest.raises(ConfigError, match="no known head has outputs"):
        recognise(spec(*shapes, labels=("a",) * 4))
    model = spec(*shapes, labels=("a",) * 4)
    named = replace(model, outputs=(model.outputs[0], replace(model.outputs[1], name="pred_boxes")))
    assert recognise(named).kind == "detr"
    assert open_head(None, named, DetectSettings()).classes == 4


@pytest.mark.parametrize(
    "shapes", [[(1, 2100, 4), (1, 2100, 6)], [(1, 300, 4), (1, 200, 6)], [(1, 300, 5), (1, 300, 6)], [(1, 300, 4)]]
)
def test_what_are_no_queries_is_refused(shapes: list[tuple[int, ...]]) -> None:
    with pytest.raises(ConfigError):
        recognise(spec(*shapes))
    with pytest.raises(ConfigError, match=r"detr expects boxes \(B, N, 4\) and scores \(B, N, C\), N at most 1000"):
        open_head(DetrSettings(), spec(*shapes), DetectSettings())


def test_columns_say_which_scores_are_classes() -> None:
    model, (logits, boxes) = encode()
    names = ("five", "one")
    with pytest.raises(ConfigError, match="2 class names, but scores in 6 columns; give one name a column, or say"):
        open_head(None, replace(model, labels=names), DetectSettings())
    head = open_head(DetrSettings(columns=(5, 1)), replace(model, labels=names), DetectSettings(conf=0.8))
    assert head.classes == 2
    assert sorted(head.candidates([logits, boxes], 0).class_id.tolist()) == [0, 1]
    for wrong in ((0, 6), (1, 1), (-1, 0)):
        with pytest.raises(ConfigError, match=r"must be different numbers of 0\.\.5"):
            open_head(DetrSettings(columns=wrong), model, DetectSettings())


def test_wrong_values_are_named_at_the_first_frame() -> None:
    model, (logits, boxes) = encode()
    detect = DetectSettings()
    with pytest.raises(ModelError, match=r"they are probabilities\. .*model\.head: \{kind: detr, activated: true"):
        open_head(None, model, detect).candidates([sigmoid(logits), boxes], 0)
    with pytest.raises(ModelError, match=r"with scores after the sigmoid, but they are .* if these are logits"):
        open_head(DetrSettings(activated=True), model, detect).candidates([logits, boxes], 0)
    with pytest.raises(ModelError, match=r"box centres are .*, not fractions of the input from 0 to 1"):
        open_head(None, model, detect).candidates([logits, boxes * SIZE], 0)
    with pytest.raises(ModelError, match="contain no numbers"):
        open_head(None, model, detect).candidates([np.full_like(logits, np.nan), boxes], 0)


def test_nobody_says_how_it_is_fed() -> None:
    with pytest.raises(ConfigError, match=r'detr models are not fed as others are.*resize: "stretch"'):
        open_head(None, replace(encode()[0], input_declared=False), DetectSettings())
