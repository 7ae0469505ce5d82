"""NanoDet-Plus's rows: classes and distributions of distances from a cell's corner."""

from __future__ import annotations

import numpy as np
import pytest

from streamd.errors import ConfigError, ModelError
from streamd.heads import DetectSettings
from streamd.heads.nanodet import NanodetSettings
from streamd.heads.select import open_head, recognise
from streamd.testing.objects import CLASSES, OBJECTS, SIZE, Case, Encoded, spec
from tests.heads.test_picodet import distribution

GRIDS = {s: SIZE // s for s in (8, 16, 32, 64)}


def encode(batch: int = 1, index: int = 0) -> Encoded:
    """See `Case.encode`."""
    grids = [np.zeros((batch, n, n, CLASSES + 32), np.float32) for n in GRIDS.values()]
    for cx, cy, w, h, obj, cls, score in OBJECTS:
        level, stride = next((i, s) for i, s in enumerate(GRIDS) if max(w, h) / 2 / s + 1 < 7)
        column, row = int(cx / stride), int(cy / stride)
        x, y = column * stride, row * stride
        cell = grids[level][index, row, column]
        cell[cls] = obj * score
        for side, d in enumerate((x - (cx - w / 2), y - (cy - h / 2), cx + w / 2 - x, cy + h / 2 - y)):
            cell[CLASSES + 8 * side : CLASSES + 8 * side + 8] = distribution(d / stride, 8)
    rows = np.concatenate([g.reshape(batch, -1, CLASSES + 32) for g in grids], axis=1)
    return spec(rows.shape), [rows]


def contract_cases() -> list[Case]:
    return [Case("NanoDet-Plus", encode, None)]


def test_the_published_sizes_are_recognised() -> None:
    """nanodet-plus-m at 416 has 3,598 rows of 112 values, at 320 has 2,125 (its export's own shapes)."""
    assert NanodetSettings.shapes(416, 416, 80) == ((1, 3598, 112),)
    assert recognise(spec((1, 2125, 112), labels=())).kind == "nanodet"
    with pytest.raises(ConfigError, match=r"nanodet has \[1, 2125, 112\]"):
        recognise(spec((1, 2125, 113), labels=()))


def test_boxes_end_at_the_edges_of_the_input() -> None:
    model, (rows,) = encode()
    rows[:] = 0
    rows[0, 0, 1] = 0.9
    for side in range(4):
        rows[0, 0, CLASSES + 8 * side : CLASSES + 8 * side + 8] = distribution(2.5, 8)
    found = open_head(None, model, DetectSettings()).candidates([rows], 0)
    assert found.xyxy.tolist() == [[0.0, 0.0, 20.0, 20.0]]


def test_what_does_not_fit_is_refused() -> None:
    model, (rows,) = encode()
    with pytest.raises(ConfigError, match=r"strides \[8, 16, 32\] make 2100 rows at input 320×320"):
        open_head(NanodetSettings(strides=(8, 16, 32)), model, DetectSettings())
    with pytest.raises(ConfigError, match=r"strides: \[0\] must all be 1 or more"):
        open_head(NanodetSettings(strides=(0,)), model, DetectSettings())
    rows[:, :, :CLASSES] -= 4
    with pytest.raises(ModelError, match="not 0 to 1: export the model with the sigmoid of its classes"):
        open_head(None, model, DetectSettings()).candidates([rows], 0)
