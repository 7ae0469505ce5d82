"""RT-DETR, D-FINE and DEIM with their post-processing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from streamd.errors import ConfigError, ModelError
from streamd.heads import DetectSettings
from streamd.heads.detr_final import DetrFinalSettings
from streamd.heads.select import open_head, recognise
from streamd.testing.objects import CLASSES, OBJECTS, OVERLAPPING, Case, Encoded, spec
from streamd.types import TensorSpec


def encode(batch: int = 1, index: int = 0) -> Encoded:
    """See `Case.encode`. What NMS would drop is not there."""
    labels, scores = np.zeros((batch, 300), np.float32), np.full((batch, 300), 1e-3, np.float32)
    boxes = np.tile(np.array([10, 20, 300, 310], np.float32), (batch, 300, 1))
    objects = sorted((o for o in OBJECTS if o is not OVERLAPPING), key=lambda o: -o[4] * o[6])
    for i, (cx, cy, w, h, obj, cls, score) in enumerate(objects):
        boxes[index, i] = cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
        labels[index, i], scores[index, i] = cls, obj * score
    outputs = [("labels", labels), ("boxes", boxes), ("scores", scores)]
    model = replace(spec(), outputs=tuple(TensorSpec(name, o.shape, "float32") for name, o in outputs))
    return model, [o for _, o in outputs]


def contract_cases() -> list[Case]:
    return [Case("", encode, None)]


def test_a_query_has_its_best_class_or_all_of_them() -> None:
    model, (labels, boxes, scores) = encode()
    scores[0, 3], boxes[0, 3], labels[0, 3] = 0.5, boxes[0, 0], 4  # the best query again, as another class
    best = open_head(None, model, DetectSettings()).candidates([labels, boxes, scores], 0)
    every = open_head(None, model, DetectSettings(multi_label=True)).candidates([labels, boxes, scores], 0)
    assert best.class_id.tolist() == labels[0, :3].tolist()
    assert every.class_id.tolist() == labels[0, :4].tolist()


def test_outputs_are_told_by_their_names() -> None:
    model, _ = encode()
    for outputs in (
        model.outputs[:2],
        tuple(replace(t, name=f"out{i}") for i, t in enumerate(model.outputs)),
        (model.outputs[0], replace(model.outputs[1], shape=(1, 300, 5)), model.outputs[2]),
        (model.outputs[0], model.outputs[1], replace(model.outputs[2], shape=(1, 200))),
    ):
        with pytest.raises(ConfigError, match="no known head has outputs"):
            recognise(replace(model, outputs=outputs))
        with pytest.raises(ConfigError, match="detr_final expects three outputs named labels"):
            open_head(DetrFinalSettings(), replace(model, outputs=outputs), DetectSettings())


def test_labels_outside_the_names_are_left_out() -> None:
    model, (labels, boxes, scores) = encode()
    labels[0, 0] = CLASSES
    assert len(open_head(None, model, DetectSettings()).candidates([labels, boxes, scores], 0).score) == 2


def test_wrong_values_are_named_at_the_first_frame() -> None:
    model, (labels, boxes, scores) = encode()
    with pytest.raises(ModelError, match=r"what detr_final reads as scores is .*, not 0 to 1"):
        open_head(None, model, DetectSettings()).candidates([labels, boxes, np.float32(9) * scores + np.float32(3)], 0)
    with pytest.raises(ModelError, match=r"corners in pixels, but none exceeds 0\.9"):
        open_head(None, model, DetectSettings()).candidates([labels, boxes / np.float32(320), scores], 0)
