"""Boxes that cannot be are left out and counted; sound ones stay as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamd.errors import ModelError
from streamd.heads import DetectSettings
from streamd.heads.postprocess import Postprocess
from streamd.heads.select import open_head
from streamd.heads.validate import NONE, REASONS, check_numbers, inside, mostly_outside_unit, possible, span
from streamd.testing.objects import CLASSES, LABELS, WHOLE, expected, spec
from streamd.types import Box, Candidates, Letterbox
from tests.contracts import gives
from tests.heads import test_end_to_end, test_yolov8

NAN, INF = np.nan, np.inf
BOX = Letterbox.fit(Box(0, 0, 640, 320), 320, 320)
"""Content from 80 to 240 down; grey above and below."""
SOUND = (100.0, 100.0, 150.0, 150.0, 0.9)
BAD = [
    ((NAN, 100, 150, 150, 0.9), "not_finite"),
    ((100, 100, 150, NAN, 0.9), "not_finite"),
    ((100, 100, INF, 150, 0.9), "not_finite"),
    ((-INF, 100, 150, INF, 0.9), "not_finite"),
    ((-3e38, -3e38, 3e38, 3e38, 0.9), "not_finite"),
    ((100, 100, 150, 150, NAN), "score"),
    ((100, 100, 150, 150, INF), "score"),
    ((100, 100, 150, 150, 7e30), "score"),
    ((100, 100, 150, 150, 1.01), "score"),
    ((100, 100, 150, 150, -0.1), "score"),
    ((150, 150, 100, 100, 0.9), "size"),
    ((100, 150, 150, 100, 0.9), "size"),
    ((100, 100, 100, 150, 0.9), "size"),
]
OUTSIDE = [(100, 10, 150, 79), (100, 240, 150, 300), (-60, 100, 0, 150), (320, 100, 400, 150)]
EDGES = [
    (-30, 50, 1, 81, 0.9),
    (319, 239, 400, 400, 0.9),
    (-5000, -5000, 5000, 5000, 0.9),
    (100, 100, 100.1, 100.1, 0.9),
    (100, 100, 150, 150, 0.0),
    (100, 100, 150, 150, 1.0005),
]


def candidates(*rows: Any, suppressed: bool = False) -> Candidates:
    values = np.array(rows, np.float32).reshape(-1, 5)
    return Candidates(values[:, :4], values[:, 4], np.zeros(len(values), np.int32), suppressed)


@pytest.mark.parametrize(("bad", "reason"), BAD)
@pytest.mark.parametrize("suppressed", [False, True])
def test_what_cannot_be_is_left_out_with_its_reason(bad: Any, reason: str, suppressed: bool) -> None:
    other = (200.0, 120.0, 210.0, 130.0, 0.3)
    kept, counts = possible(candidates(SOUND, bad, other, suppressed=suppressed))
    np.testing.assert_array_equal(kept.xyxy, np.array([SOUND[:4], other[:4]], np.float32))
    np.testing.assert_array_equal(kept.score, np.array([0.9, 0.3], np.float32))
    assert kept.suppressed == suppressed
    assert counts == {reason: 1}


@pytest.mark.parametrize("edge", EDGES)
def test_what_can_be_stays(edge: Any) -> None:
    found = candidates(SOUND, edge)
    kept, counts = possible(found)
    assert kept is found
    assert counts is NONE


@pytest.mark.parametrize("outside", OUTSIDE)
@pytest.mark.parametrize("suppressed", [False, True])
def test_what_is_not_in_the_picture_is_left_out(outside: Any, suppressed: bool) -> None:
    model, _ = test_yolov8.encode()
    post = Postprocess(open_head(None, model, DetectSettings()), DetectSettings(), LABELS)
    found = candidates(SOUND, (*outside, 0.8), suppressed=suppressed)
    xyxy, score, class_id = post([found], 0, BOX)
    np.testing.assert_allclose(xyxy, [[200, 40, 300, 140]])
    assert (score.tolist(), class_id.tolist()) == ([np.float32(0.9)], [0])
    assert post.rejected == {"outside": 1}
    assert len(post([found], 0, WHOLE)[1]) == 2 - (outside[0] >= 320 or outside[2] <= 0)


def test_what_a_device_marked_is_told_by_its_corners() -> None:
    """kernels.cu gives it class -1 and score 0."""
    rows = [SOUND, (NAN, 1, 2, 3, 0.0), (9, 9, 8, 10, 0.0), (100, 100, 150, 150, 0.0)]
    found = candidates(*rows, suppressed=True)
    found.class_id[1:] = -1
    kept, counts = possible(found)
    assert kept.class_id.tolist() == [0]
    assert counts == {"not_finite": 1, "size": 1, "score": 1}


@given(st.lists(st.tuples(*[st.floats(width=32)] * 5), max_size=12))
def test_no_published_box_is_impossible(rows: Any) -> None:
    model, _ = test_yolov8.encode()
    post = Postprocess(open_head(None, model, DetectSettings()), DetectSettings(iou=1), LABELS)
    xyxy, score, _ = post([candidates(*rows)], 0, BOX)
    assert len(score) + sum(post.rejected.values()) == len(rows)
    assert set(post.rejected) <= set(REASONS)
    assert np.isfinite(xyxy).all()
    assert (xyxy[:, 2:] > xyxy[:, :2]).all()
    assert ((xyxy >= 0) & (xyxy <= [640, 320] * 2)).all()
    assert ((score >= 0) & (score <= 1)).all()
    assert inside(xyxy) is None


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize(("row", "reason"), [((NAN, 20, 8, 8), "not_finite"), ((20, 20, -8, -8), "size")])
def test_a_bad_box_takes_no_sound_one_with_it(row: Any, reason: str, agnostic: bool) -> None:
    """In NMS, one NaN made every comparison false, and all boxes but the best were gone."""
    model, outputs = test_yolov8.encode()
    for class_id in (1, 3, 5):
        outputs[0][0, :4, 500 + class_id] = row
        outputs[0][0, 4 + class_id, 500 + class_id] = 0.99
    detect = DetectSettings(agnostic=agnostic)
    post = Postprocess(open_head(None, model, detect), detect, LABELS)
    xyxy, score, _ = post(outputs, 0, WHOLE)
    np.testing.assert_allclose(xyxy, expected()[0], atol=0.01)
    np.testing.assert_allclose(score, expected()[1], rtol=1e-4)
    assert post.rejected == {reason: 3}
    post(test_yolov8.encode()[1], 0, WHOLE)
    assert post.rejected is NONE


def test_scores_a_rounding_above_one_are_one() -> None:
    model, outputs = test_yolov8.encode()
    outputs[0][0, 4, 600] = 1.0004
    outputs[0][0, :4, 600] = 40, 300, 20, 20
    post = Postprocess(open_head(None, model, DetectSettings()), DetectSettings(), LABELS)
    assert post(outputs, 0, WHOLE)[1][0] == 1
    assert post.rejected is NONE


# The first outputs


@pytest.mark.parametrize("kind", ["yolov8", "yolov5_cat", "yolov5_heads", "yolox", "picodet"])
def test_outputs_without_numbers_are_an_error(kind: str) -> None:
    model, outputs = gives("tests.heads", kind, "contract_cases")()[0].encode(1, 0)
    head = open_head(None, model, DetectSettings())
    with pytest.raises(ModelError, match="contain no numbers, only NaN or infinity; it overflows in this precision"):
        head.candidates([np.full_like(o, NAN) for o in outputs], 0)


def test_normalised_boxes_are_an_error() -> None:
    for module in (test_yolov8, test_end_to_end):
        model, outputs = module.encode()
        boxes = outputs[0][:, :4] if module is test_yolov8 else outputs[0][..., :4]
        boxes /= 320
        with pytest.raises(ModelError, match=r"its boxes are normalised to 0\.\.1"):
            open_head(None, model, DetectSettings()).candidates(outputs, 0)


@pytest.mark.parametrize("extra", [51, 32])
def test_pose_and_masks_that_look_like_classes_are_an_error(extra: int) -> None:
    """Without metadata and names, their values are all that tells them."""
    _, outputs = test_yolov8.encode()
    random = np.random.default_rng(1)
    shape = (1, extra, outputs[0].shape[2])
    more = random.uniform(0, 320, shape) if extra == 51 else random.normal(0, 1, shape)
    columns = np.concatenate([outputs[0], more.astype(np.float32)], axis=1)
    head = open_head(None, spec(columns.shape, labels=()), DetectSettings())
    with pytest.raises(ModelError, match="Exports for pose, segmentation and oriented boxes have such values"):
        head.candidates([columns], 0)


def test_rows_in_another_order_are_an_error() -> None:
    model, outputs = test_end_to_end.encode()
    outputs[0] = np.ascontiguousarray(outputs[0][..., [0, 1, 2, 3, 5, 4]])
    with pytest.raises(ModelError, match="its rows are not x1 y1 x2 y2 score class"):
        open_head(None, model, DetectSettings()).candidates(outputs, 0)


def test_single_bad_values_are_no_reason_to_stop() -> None:
    model, outputs = test_yolov8.encode()
    outputs[0][0, 4, 700], outputs[0][0, 5, 701], outputs[0][0, 0, 702] = INF, NAN, NAN
    post = Postprocess(open_head(None, model, DetectSettings()), DetectSettings(), LABELS)
    assert len(post(outputs, 0, WHOLE)[1]) == 3
    assert post.rejected == {"score": 1}


def test_helpers() -> None:
    check_numbers("m", np.array([NAN, 1], np.float32), np.array([2], np.float32))
    with pytest.raises(ModelError, match="model m: its outputs contain no numbers"):
        check_numbers("m", np.array([NAN], np.float32), np.array([1], np.float32))
    assert not mostly_outside_unit(np.full((10, CLASSES), 0.5, np.float32))
    assert mostly_outside_unit(np.full((10, CLASSES), -3, np.float32))
    assert span(np.array([NAN, 2, -1], np.float32)) == "-1 to 2"
    assert span(np.array([NAN], np.float32)) == "NaN"
