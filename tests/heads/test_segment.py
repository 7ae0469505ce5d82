"""Boxes with masks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from streamd.errors import ConfigError
from streamd.heads import DetectSettings
from streamd.heads.postprocess import Postprocess
from streamd.heads.segment import SegmentSettings
from streamd.heads.select import open_head, recognise
from streamd.testing.objects import LABELS, OBJECTS, SIZE, Case, Encoded, spec
from streamd.types import Box, Letterbox
from tests.heads.test_pose import columns_of, rows_of

METADATA = {"task": "segment"}
PROTOTYPES, CELL = len(OBJECTS), 4


def weights(cx: float, cy: float, *_: float) -> Any:
    """Each object has a prototype of its own."""
    out = np.zeros(PROTOTYPES, np.float32)
    out[[o[:2] for o in OBJECTS].index((cx, cy))] = 1
    return out


def prototypes(batch: int, index: int) -> Any:
    """(B, P, H, W): positive inside the ellipse that its object's box holds."""
    out = np.full((batch, PROTOTYPES, SIZE // CELL, SIZE // CELL), -1, np.float32)
    y, x = (np.indices(out.shape[2:]) + 0.5) * CELL
    for i, (cx, cy, w, h, *_) in enumerate(OBJECTS):
        out[index, i] = 1 - ((x - cx) * 2 / w) ** 2 - ((y - cy) * 2 / h) ** 2
    return out


def encode(batch: int = 1, index: int = 0) -> Encoded:
    """See `Case.encode`."""
    outputs = [columns_of(weights, batch, index, PROTOTYPES), prototypes(batch, index)]
    return spec(*(o.shape for o in outputs), metadata=METADATA), outputs


def encode_final(batch: int = 1, index: int = 0) -> Encoded:
    """See `Case.encode`. Prototypes first."""
    outputs = [prototypes(batch, index), rows_of(weights, batch, index, PROTOTYPES)]
    return spec(*(o.shape for o in outputs), metadata=METADATA), outputs


def contract_cases() -> list[Case]:
    return [Case("before NMS", encode, None), Case("after NMS", encode_final, None)]


@pytest.mark.parametrize("form", [encode, encode_final])
def test_outlines_are_those_of_the_objects_in_the_source(form: Any) -> None:
    import cv2

    model, outputs = form()
    detect = DetectSettings()
    post = Postprocess(open_head(None, model, detect), detect, LABELS)
    xyxy, _, _ = post(outputs, 0, Letterbox.fit(Box(100, 50, 640, 640), SIZE, SIZE))
    assert post.details is not None
    assert post.details.polygons is not None
    assert len(post.details.polygons) == len(xyxy) == 3
    for (x1, y1, x2, y2), polygon in zip(xyxy.tolist(), post.details.polygons, strict=True):
        assert 6 <= len(polygon) <= 64
        # Twice the input's size: an outline within one input pixel is within two here.
        radius = np.hypot(
            (polygon[:, 0] - (x1 + x2) / 2) * 2 / (x2 - x1), (polygon[:, 1] - (y1 + y2) / 2) * 2 / (y2 - y1)
        )
        np.testing.assert_allclose(radius, 1, atol=4 / min(x2 - x1, y2 - y1) * 2)
        assert cv2.contourArea(polygon) == pytest.approx(np.pi / 4 * (x2 - x1) * (y2 - y1), rel=0.12)


def test_a_mask_ends_at_its_box_and_may_be_empty() -> None:
    model, outputs = encode()
    outputs[1][0, 2] = 1  # everywhere
    outputs[1][0, 0] = -1  # nowhere
    detect = DetectSettings()
    post = Postprocess(open_head(None, model, detect), detect, LABELS)
    xyxy, _, class_id = post(outputs, 0, Letterbox.fit(Box(0, 0, SIZE, SIZE), SIZE, SIZE))
    assert post.details is not None
    assert post.details.polygons is not None
    by_class = dict(zip(class_id.tolist(), post.details.polygons, strict=True))
    assert by_class[1].shape == (0, 2)
    box = xyxy[class_id.tolist().index(5)]
    outline = np.array([*by_class[5].min(axis=0), *by_class[5].max(axis=0)])
    np.testing.assert_allclose(outline, box, atol=1)


def test_other_shapes_are_refused() -> None:
    model, _ = encode()
    rows, masks = model.outputs
    assert recognise(model).kind == "segment"
    wrong = (
        (rows,),
        (rows, rows),
        (rows, replace(masks, shape=(1, PROTOTYPES, 90, 80))),
        (rows, replace(masks, shape=(1, PROTOTYPES, -1, -1))),
        (rows, masks, masks),
    )
    for outputs in wrong:
        with pytest.raises(ConfigError, match=r"segment expects rows \(B, 4\+C\+P, N\) or .* at input 320×320"):
            open_head(SegmentSettings(), replace(model, outputs=outputs), DetectSettings())
        with pytest.raises(ConfigError):
            recognise(replace(model, outputs=outputs))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_masks_of_no_numbers_give_finite_outlines(value: float) -> None:
    model, outputs = encode()
    outputs[1][0, :, ::2] = value
    outputs[0][0, -1] = value
    detect = DetectSettings()
    post = Postprocess(open_head(None, model, detect), detect, LABELS)
    assert len(post(outputs, 0, Letterbox.fit(Box(0, 0, SIZE, SIZE), SIZE, SIZE))[1]) == 3
    assert post.details is not None
    assert post.details.polygons is not None
    assert all(np.isfinite(polygon).all() for polygon in post.details.polygons)
