"""Outputs with NMS inside."""

from __future__ import annotations

import numpy as np
import pytest

from streamd.errors import ConfigError
from streamd.heads import DetectSettings
from streamd.heads.end_to_end import EndToEndSettings
from streamd.heads.select import open_head
from tests.heads.cases import CELLS, CLASSES, OBJECTS, OVERLAPPING, Case, Encoded, spec


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
