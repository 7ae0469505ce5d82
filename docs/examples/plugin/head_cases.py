"""What streamd's contract suite for heads needs to test yolov8_rows; see docs/extending.md, "Test a plugin"."""

from __future__ import annotations

import numpy as np

from tests.heads.cases import CLASSES, OBJECTS, SIZE, Case, Encoded, spec

ROWS = (SIZE // 8) ** 2 + (SIZE // 16) ** 2 + (SIZE // 32) ** 2


def encode(batch: int, index: int) -> Encoded:
    """A model and its outputs: the suite's objects in frame `index` of the batch."""
    rows = np.zeros((batch, ROWS, 4 + CLASSES), np.float32)
    for i, (cx, cy, width, height, objectness, label, score) in enumerate(OBJECTS):
        rows[index, i, :4] = cx, cy, width, height
        rows[index, i, 4 + label] = objectness * score
    return spec((-1, ROWS, 4 + CLASSES), head={"kind": "yolov8_rows"}), [rows]


def contract_cases() -> list[Case]:
    """The only form of this head's outputs. No device decodes them, and their shapes do not tell the head."""
    return [Case("", encode, None, recognised=False)]
