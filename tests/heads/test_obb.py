"""Rotated boxes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamd.errors import ConfigError
from streamd.heads import DetectSettings
from streamd.heads.obb import ObbSettings, covariances, probabilistic_iou, rotated_corners, rotated_nms, upright_boxes
from streamd.heads.postprocess import Postprocess
from streamd.heads.select import open_head
from streamd.testing.objects import CELLS, LABELS, SIZE, WHOLE, Case, Encoded, spec
from streamd.types import Box, Letterbox, Placement
from tests.heads.test_pose import columns_of, rows_of

METADATA = {"task": "obb"}
side = st.floats(2, 100, width=32)
boxes = st.tuples(st.floats(0, 300, width=32), st.floats(0, 300, width=32), side, side, st.floats(-4, 4, width=32))


def no_angle(*_: float) -> tuple[float, ...]:
    return (0.0,)


def encode(batch: int = 1, index: int = 0) -> Encoded:
    """See `Case.encode`. Rotated boxes that are not."""
    columns = columns_of(no_angle, batch, index, 1)
    return spec(columns.shape, metadata=METADATA), [columns]


def encode_final(batch: int = 1, index: int = 0) -> Encoded:
    """See `Case.encode`."""
    rows = rows_of(no_angle, batch, index, 1, corners=False)
    return spec(rows.shape, metadata=METADATA), [rows]


def contract_cases() -> list[Case]:
    return [Case("before NMS", encode, None), Case("after NMS", encode_final, None)]


@given(boxes)
def test_corners_make_a_rectangle_of_its_size_and_angle_inside_the_upright_box(box: Any) -> None:
    (corners,) = rotated_corners(np.array([box], np.float32)).astype(np.float64)
    cx, cy, w, h, angle = box
    np.testing.assert_allclose(corners.mean(axis=0), (cx, cy), atol=1e-3)
    sides = np.roll(corners, -1, axis=0) - corners
    np.testing.assert_allclose(np.hypot(*sides.T), [h, w, h, w], rtol=1e-4, atol=1e-3)
    assert abs(sides[0] @ sides[1]) < 1e-2 * w * h
    np.testing.assert_allclose(abs(sides[1] @ [-math.sin(angle), math.cos(angle)]), 0, atol=1e-2)
    upright = upright_boxes(np.array([box[:4]], np.float32), np.array([[angle]], np.float32))[0]
    np.testing.assert_allclose(upright, [*corners.min(axis=0), *corners.max(axis=0)], atol=1e-2)


def probiou(a: Any, b: Any) -> float:
    values = np.array([a, b], np.float32)
    centers, spreads = values[:, :2].T.astype(np.float64), covariances(values)
    return float(probabilistic_iou(centers[:, 0], spreads[:, 0], centers[:, 1:], spreads[:, 1:])[0])


def test_a_side_below_nothing_makes_a_box_that_cannot_be() -> None:
    model, outputs = encode_final()
    outputs[0][0, 0, 2:4] = -20, 90
    outputs[0][0, 0, 6] = 0.7
    detect = DetectSettings()
    post = Postprocess(open_head(None, model, detect), detect, LABELS)
    assert len(post(outputs, 0, WHOLE)[1]) == 2
    assert post.rejected == {"size": 1}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_angle_that_is_no_number_makes_a_box_that_cannot_be(value: float) -> None:
    model, (columns,) = encode()
    columns[0, -1, 0] = value
    detect = DetectSettings()
    post = Postprocess(open_head(None, model, detect), detect, LABELS)
    assert len(post([columns], 0, WHOLE)[1]) == 2
    assert post.rejected == {"not_finite": 1}


@given(boxes, boxes)
def test_overlap_is_symmetric_and_that_of_the_definition(a: Any, b: Any) -> None:
    """1 less the Hellinger distance of two normal distributions, by matrices."""

    def normal(box: Any) -> tuple[Any, Any]:
        turn = np.array([[math.cos(box[4]), -math.sin(box[4])], [math.sin(box[4]), math.cos(box[4])]])
        return np.array(box[:2]), turn @ np.diag([box[2] ** 2 / 12, box[3] ** 2 / 12]) @ turn.T

    (m1, s1), (m2, s2) = normal(a), normal(b)
    middle = (s1 + s2) / 2
    distance = (m1 - m2) @ np.linalg.inv(middle) @ (m1 - m2) / 8
    distance += np.log(np.linalg.det(middle) / math.sqrt(np.linalg.det(s1) * np.linalg.det(s2))) / 2
    want = 1 - math.sqrt(max(0.0, 1 - math.exp(-distance)))
    assert probiou(a, b) == pytest.approx(want, abs=2e-3)
    assert probiou(a, b) == pytest.approx(probiou(b, a), abs=1e-9)


def test_crossed_boxes_stay_and_turned_twins_do_not() -> None:
    """Upright boxes of a cross are equal, and one would be dropped."""
    cross = np.array([[100, 100, 80, 8, 0.8], [100, 100, 80, 8, 0.8 + math.pi / 2]], np.float32)
    twins = np.array([[100, 100, 80, 8, 0.8], [101, 100, 8, 80, 0.8 + math.pi / 2]], np.float32)
    score, same = np.array([0.9, 0.8], np.float32), np.zeros(2, np.int32)
    assert rotated_nms(cross, score, same, 0.45, 300).tolist() == [0, 1]
    assert rotated_nms(twins, score, same, 0.45, 300).tolist() == [0]
    assert rotated_nms(twins, score[::-1], same, 0.45, 300).tolist() == [1]
    assert rotated_nms(twins, score, np.array([0, 1], np.int32), 0.45, 300).tolist() == [0, 1]
    assert rotated_nms(cross, score, same, 0.45, 1).tolist() == [0]
    assert rotated_nms(cross[:0], score[:0], same[:0], 0.45, 1).tolist() == []


@pytest.mark.parametrize(("form", "place"), [(0, "letterbox"), (1, "letterbox"), (0, "stretch")])
def test_corners_go_to_the_source_with_the_picture(form: int, place: Any) -> None:
    model, outputs = (encode, encode_final)[form]()
    if form:
        outputs[0][0, :, 6] = 0.5
    else:
        outputs[0][0, -1] = 0.5
    detect = DetectSettings(conf=0.8)
    post = Postprocess(open_head(None, model, detect), detect, LABELS)
    box = Letterbox.fit(Box(0, 0, 640, 640 if place == "letterbox" else 320), SIZE, SIZE, Placement(place))
    xyxy, _, _ = post(outputs, 0, box)
    assert post.details is not None
    assert post.details.oriented is not None
    assert len(post.details.oriented) == 2
    for upright, corners in zip(xyxy, post.details.oriented, strict=True):
        # Upright boxes are clipped to the picture, corners are not: they would be no rectangle any more.
        around = np.array([*corners.min(axis=0), *corners.max(axis=0)])
        np.testing.assert_allclose(upright, np.clip(around, 0, [640, box.roi.height] * 2), atol=0.01)
        sides = np.roll(corners, -1, axis=0) - corners
        # A stretched picture makes rectangles skew.
        assert (abs(sides[0] @ sides[1]) < 1) == (place == "letterbox")


def test_one_class_suppresses_others_where_asked_for() -> None:
    model, (columns,) = encode()
    columns[0, 4 + 2, 7 * 1] = 0.5
    every = DetectSettings(multi_label=True, conf=0.4)
    for agnostic, count in ((False, 4), (True, 3)):
        detect = every.model_copy(update={"agnostic": agnostic})
        post = Postprocess(open_head(None, model, detect), detect, LABELS)
        assert len(post([columns], 0, WHOLE)[1]) == count


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"obb with 1 values for the angle expects \(B, 4\+C\+1, N\), or \(B, N, 7\)"):
        open_head(ObbSettings(), spec((1, 5, CELLS)), DetectSettings())
