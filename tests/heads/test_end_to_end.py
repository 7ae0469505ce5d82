"""Outputs with NMS inside."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import structlog

from streamd.errors import ConfigError, ModelError
from streamd.heads import DetectSettings, Head
from streamd.heads.end_to_end import EndToEndSettings
from streamd.heads.select import open_head
from streamd.testing.objects import CELLS, CLASSES, OBJECTS, OVERLAPPING, Case, Encoded, spec


def encode(batch: int = 1, index: int = 0) -> Encoded:
    """See `Case.encode`. What NMS would drop is not there."""
    rows = np.zeros((batch, 300, 6), np.float32)
    rows[..., 5] = -1
    for i, (cx, cy, w, h, obj, cls, score) in enumerate(o for o in OBJECTS if o is not OVERLAPPING):
        rows[index, i] = cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2, obj * score, cls
    return spec(rows.shape), [rows]


def contract_cases() -> list[Case]:
    return [Case("", encode, "final_boxes")]


def test_settings_that_contradict_the_model() -> None:
    with pytest.raises(ConfigError, match="end_to_end expects"):
        open_head(EndToEndSettings(), spec((1, 4 + CLASSES, CELLS)), DetectSettings())


def _head(labels: int = CLASSES) -> Head:
    model = replace(spec((1, 300, 6)), labels=tuple(f"c{i}" for i in range(labels)))
    return open_head(EndToEndSettings(), model, DetectSettings())


def _rows(*rows: tuple[float, ...]) -> list[np.ndarray]:
    values = np.zeros((1, 300, 6), np.float32)
    values[0, : len(rows)] = rows
    values[0, len(rows) :, 5] = -1
    return [values]


def test_boxes_of_a_class_without_a_label_are_told_of_once() -> None:
    head = _head(labels=2)
    outputs = _rows((1, 1, 9, 9, 0.9, 1), (30, 30, 50, 50, 0.8, 2), (30, 30, 50, 50, 0.8, 7), (0, 0, 9, 9, 0.9, np.nan))
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            found = head.candidates(outputs, 0)
            assert found.class_id.tolist() == [1]
    (line,) = logs
    assert (line["class_id"], line["labels"]) == (7, 2)
    assert "give model.labels for all classes" in line["event"]


def test_all_boxes_of_classes_without_labels() -> None:
    assert len(_head(labels=1).candidates(_rows((1, 1, 9, 9, 0.9, 5)), 0).score) == 0


def test_score_and_class_in_the_other_order_are_refused() -> None:
    """A score of 1 and class 0 would be published for each object of class 1."""
    with pytest.raises(ModelError, match=r"what should be class numbers is 0\.35 to 0\.87"):
        _head().candidates(_rows((1, 1, 9, 9, 1, 0.87), (30, 30, 50, 50, 1, 0.35)), 0)
