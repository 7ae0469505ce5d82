"""Boxes with keypoints."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from streamd.errors import ConfigError, ModelError
from streamd.heads import DetectSettings
from streamd.heads.pose import PoseSettings
from streamd.heads.postprocess import Postprocess
from streamd.heads.select import open_head, recognise
from streamd.testing.objects import CELLS, CLASSES, LABELS, OBJECTS, OVERLAPPING, SIZE, WHOLE, Case, Encoded, spec
from streamd.types import Box, Letterbox

POINTS = 5
METADATA = {"task": "pose", "kpt_shape": f"[{POINTS}, 3]", "names": str(dict(enumerate(LABELS)))}


def points_of(cx: float, cy: float, w: float, h: float) -> npt.NDArray[np.float32]:
    """(K, 3): the center and the corners, each less sure than the one before."""
    xs, ys = np.array([0, -1, 1, 1, -1]) * w / 2 + cx, np.array([0, -1, -1, 1, 1]) * h / 2 + cy
    return np.stack([xs, ys, np.linspace(1, 0.2, POINTS)], axis=1).astype(np.float32)


def columns_of(extra: Any, batch: int, index: int, width: int) -> npt.NDArray[np.float32]:
    """(B, 4+C+E, N) with every object in a column of its own, and `extra(cx, cy, w, h)` behind the classes."""
    out = np.zeros((batch, 4 + CLASSES + width, CELLS), np.float32)
    for i, (cx, cy, w, h, obj, cls, score) in enumerate(OBJECTS):
        column = out[index, :, 7 * i]
        column[:4], column[4 + cls] = (cx, cy, w, h), obj * score
        column[4 + CLASSES :] = extra(cx, cy, w, h)
    return out


def rows_of(extra: Any, batch: int, index: int, width: int, *, corners: bool = True) -> npt.NDArray[np.float32]:
    """(B, 300, 6+E). What NMS would drop is not there."""
    out = np.zeros((batch, 300, 6 + width), np.float32)
    for i, (cx, cy, w, h, obj, cls, score) in enumerate(o for o in OBJECTS if o is not OVERLAPPING):
        box = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2) if corners else (cx, cy, w, h)
        out[index, i] = [*box, obj * score, cls, *extra(cx, cy, w, h)]
    return out


def flat_points(*box: float) -> npt.NDArray[np.float32]:
    return points_of(*box).ravel()


def encode(batch: int = 1, index: int = 0) -> Encoded:
    """See `Case.encode`."""
    columns = columns_of(flat_points, batch, index, 3 * POINTS)
    return spec(columns.shape, metadata=METADATA), [columns]


def encode_final(batch: int = 1, index: int = 0) -> Encoded:
    """See `Case.encode`."""
    rows = rows_of(flat_points, batch, index, 3 * POINTS)
    return spec(rows.shape, metadata=METADATA), [rows]


def encode_declared(batch: int = 1, index: int = 0) -> Encoded:
    """See `Case.encode`. Without visibility."""
    columns = columns_of(lambda *box: points_of(*box)[:, :2].ravel(), batch, index, 2 * POINTS)
    return spec(columns.shape, head={"kind": "pose", "kpt_shape": [POINTS, 2]}), [columns]


def contract_cases() -> list[Case]:
    return [
        Case("before NMS", encode, None),
        Case("after NMS", encode_final, None),
        Case("declared", encode_declared, None, recognised=False),
    ]


@pytest.mark.parametrize("form", [encode, encode_final, encode_declared])
def test_keypoints_follow_their_boxes_to_the_source(form: Any) -> None:
    model, outputs = form()
    detect = DetectSettings()
    post = Postprocess(open_head(None, model, detect), detect, LABELS)
    box = Letterbox.fit(Box(100, 50, 640, 640), SIZE, SIZE)
    xyxy, _, _ = post(outputs, 0, box)
    assert post.details is not None
    assert post.details.keypoints is not None
    assert post.details.keypoints.shape == (3, POINTS, 3)
    for (x1, y1, x2, y2), points in zip(xyxy, post.details.keypoints, strict=True):
        want = points_of((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
        np.testing.assert_allclose(points[:, :2], want[:, :2], atol=0.05)
        np.testing.assert_allclose(points[:, 2], 1 if form is encode_declared else want[:, 2], atol=1e-6)
    assert (post.details.oriented, post.details.polygons) == (None, None)


def test_points_outside_the_picture_lie_on_its_edge_and_boxes_outside_have_none() -> None:
    """The first object is in the grey above the picture; the last one reaches beyond it."""
    model, outputs = encode()
    outputs[0][0, 4 + CLASSES : 6 + CLASSES, 14] = -50, 900
    detect = DetectSettings()
    post = Postprocess(open_head(None, model, detect), detect, LABELS)
    xyxy, _, class_id = post(outputs, 0, Letterbox.fit(Box(0, 0, 640, 320), SIZE, SIZE))
    assert post.details is not None
    assert post.details.keypoints is not None
    assert len(xyxy) == len(post.details.keypoints) == 2
    assert post.details.keypoints[class_id.tolist().index(5), 0, :2].tolist() == [0, 320]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_reaches_no_message(value: float) -> None:
    model, outputs = encode()
    outputs[0][0, 4 + CLASSES :: 3, 0] = value
    outputs[0][0, 6 + CLASSES, 7] = value
    detect = DetectSettings()
    post = Postprocess(open_head(None, model, detect), detect, LABELS)
    assert len(post(outputs, 0, WHOLE)[1]) == 3
    assert post.details is not None
    assert post.details.keypoints is not None
    assert np.isfinite(post.details.keypoints).all()
    if np.isnan(value):
        assert (post.details.keypoints[0] == 0).all()


def test_a_frame_without_boxes_has_no_details() -> None:
    model, outputs = encode(batch=2, index=1)
    detect = DetectSettings()
    post = Postprocess(open_head(None, model, detect), detect, LABELS)
    post(outputs, 1, WHOLE)
    assert post.details is not None
    assert len(post(outputs, 0, WHOLE)[1]) == 0
    assert post.details is None


def test_what_is_not_known_is_asked_for() -> None:
    model, _ = encode()
    silent = replace(model, metadata={})
    assert recognise(replace(model, metadata={"task": "pose", "kpt_shape": "(5, 3)"})).kind == "pose"
    for wrong in ("", "[5]", "[5, 4]", "[5, 3, 1]", "['a', 3]", "[0, 3]", "x" * 10_000):
        with pytest.raises(ConfigError, match=r"nothing says how many keypoints it has; declare"):
            open_head(PoseSettings(), replace(silent, metadata={"task": "pose", "kpt_shape": wrong}), DetectSettings())
    with pytest.raises(ConfigError, match=r"kpt_shape: \[5, 2\], but the metadata of m\.onnx says \[5, 3\]"):
        open_head(PoseSettings(kpt_shape=(5, 2)), model, DetectSettings())
    with pytest.raises(ConfigError, match=r"pose with 51 values for keypoints expects \(B, 4\+C\+51, N\), or"):
        open_head(PoseSettings(kpt_shape=(17, 3)), silent, DetectSettings())
    with pytest.raises(ConfigError, match="expects"):
        open_head(PoseSettings(kpt_shape=(5, 3), end_to_end=True), silent, DetectSettings())
    with pytest.raises(ConfigError, match="6 names for a model with 4 classes"):
        from streamd.heads.select import resolve_labels

        resolve_labels(silent, open_head(PoseSettings(kpt_shape=(17, 1 + 1)), replace(
            silent, outputs=spec((1, 4 + 4 + 34, CELLS)).outputs), DetectSettings()).classes)  # fmt: skip


def test_an_output_that_could_be_both_is_asked_about() -> None:
    """At 320 × 320 there are 2,100 cells: only a model with so many columns could be both."""
    shape = (1, 1000, CELLS)
    extra = CELLS - 6
    assert shape[1] < 5 + extra
    small = replace(spec((1, 84, 84)), input=replace(spec().input, shape=(1, 3, 64, 64)))
    for end_to_end, classes in ((True, len(LABELS)), (False, 84 - 4 - 78)):
        head = open_head(PoseSettings(kpt_shape=(26, 3), end_to_end=end_to_end), small, DetectSettings())
        assert head.classes == classes
    with pytest.raises(ConfigError, match=r"fits pose before and after NMS; declare .*end_to_end: true"):
        open_head(PoseSettings(kpt_shape=(26, 3)), small, DetectSettings())


def test_wrong_values_are_named_at_the_first_frame() -> None:
    model, (columns,) = encode()
    columns[:, 4 : 4 + CLASSES] += np.float32(3)
    with pytest.raises(ModelError, match=r"recognised as pose, but what should be class scores is 3 to .*not 0 to 1"):
        open_head(None, model, DetectSettings()).candidates([columns], 0)
    model, (rows,) = encode_final()
    rows[..., :4] /= np.float32(SIZE)
    with pytest.raises(ModelError, match=r"no box value exceeds .* its boxes are normalised"):
        open_head(None, model, DetectSettings()).candidates([rows], 0)
