"""PicoDet's and PP-YOLOE's classes and distributions."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from streamd.errors import ConfigError, ModelError
from streamd.heads import DetectSettings
from streamd.heads.picodet import PicodetSettings, mean_distances
from streamd.heads.select import open_head, recognise
from streamd.testing.objects import CLASSES, OBJECTS, SIZE, Case, Encoded, spec

STRIDES = (8, 16, 32, 64)


def distribution(distance: float, steps: int) -> npt.NDArray[np.float32]:
    """Logits of a distribution over 0…steps-1 whose mean is `distance`: two neighbours share it."""
    out = np.full(steps, -1e4, np.float32)
    low = int(distance)
    with np.errstate(divide="ignore"):
        out[low : low + 2] = np.maximum(np.log([1 - (distance - low), distance - low]), -1e4)
    return out


def encode_of(steps: int, batch: int = 1, index: int = 0) -> tuple[list[Any], list[Any]]:
    """Classes and distributions by stride."""
    sides = [SIZE // s for s in STRIDES]
    classes = [np.zeros((batch, n, n, CLASSES), np.float32) for n in sides]
    distances = [np.zeros((batch, n, n, 4, steps), np.float32) for n in sides]
    for cx, cy, w, h, obj, cls, score in OBJECTS:
        level = next(i for i, s in enumerate(STRIDES) if max(w, h) / 2 / s + 0.5 < steps - 1)
        stride = STRIDES[level]
        column, row = int(cx / stride), int(cy / stride)
        x, y = (column + 0.5) * stride, (row + 0.5) * stride
        classes[level][index, row, column, cls] = obj * score
        for side, d in enumerate((x - (cx - w / 2), y - (cy - h / 2), cx + w / 2 - x, cy + h / 2 - y)):
            distances[level][index, row, column, side] = distribution(d / stride, steps)
    return (
        [c.reshape(batch, -1, CLASSES) for c in classes],
        [d.reshape(batch, -1, 4 * steps) for d in distances],
    )


def encode(batch: int = 1, index: int = 0) -> Encoded:
    """See `Case.encode`. As PaddleDetection's export has it: all classes, then all distances, finest first."""
    classes, distances = encode_of(8, batch, index)
    outputs = classes + distances
    return spec(*(o.shape for o in outputs)), outputs


def encode_ppyoloe(batch: int = 1, index: int = 0) -> Encoded:
    """See `Case.encode`. Three strides, 17 steps, stride by stride, coarsest first, distances before classes."""
    classes, distances = encode_of(17, batch, index)
    outputs = [o for i in (2, 1, 0) for o in (distances[i], classes[i])]
    return spec(*(o.shape for o in outputs)), outputs


def contract_cases() -> list[Case]:
    return [Case("PicoDet", encode, None), Case("PP-YOLOE", encode_ppyoloe, None)]


@given(arrays(np.float32, (3, 32), elements=st.floats(-50, 50, width=32)))
def test_a_distance_is_the_mean_of_its_distribution(logits: Any) -> None:
    shares = np.exp(logits.astype(np.float64).reshape(3, 4, 8))
    want = (shares * np.arange(8)).sum(axis=2) / shares.sum(axis=2)
    np.testing.assert_allclose(mean_distances(logits), want, rtol=1e-5, atol=1e-6)


def test_classes_are_told_from_distances_by_names_or_known_lengths() -> None:
    rows = [40 * 40, 20 * 20, 10 * 10]

    def pairs(a: int, b: int) -> list[Any]:
        return [(1, n, w) for n in rows for w in (a, b)]

    assert recognise(spec(*pairs(80, 32), labels=())).kind == "picodet"
    assert open_head(None, spec(*pairs(68, 80), labels=()), DetectSettings()).classes == 80
    assert open_head(None, spec(*pairs(20, 32), labels=("a",) * 20), DetectSettings()).classes == 20
    assert open_head(PicodetSettings(classes=32), spec(*pairs(64, 32), labels=()), DetectSettings()).classes == 32
    for shapes in (pairs(20, 32), pairs(80, 64), pairs(32, 32), pairs(80, 30), pairs(80, 32)[:2], pairs(80, 32)[:3]):
        with pytest.raises(ConfigError, match="no known head has outputs"):
            recognise(spec(*shapes, labels=()))
        with pytest.raises(ConfigError, match=r"picodet expects, for two strides or more, .* at input 320×320"):
            open_head(PicodetSettings(), spec(*shapes, labels=()), DetectSettings())


def test_grids_are_rounded_up() -> None:
    """416 is no multiple of 64: PicoDet's coarsest grid there has 7 × 7 cells, as picodet_s_416_coco.onnx shows."""
    assert PicodetSettings.shapes(416, 416, 80)[3] == (1, 49, 80)


def test_what_has_no_sigmoid_is_refused() -> None:
    model, outputs = encode()
    for classes in outputs[:4]:
        classes -= 4
    with pytest.raises(ModelError, match="not 0 to 1: export the model with the sigmoid of its classes"):
        open_head(None, model, DetectSettings()).candidates(outputs, 0)
