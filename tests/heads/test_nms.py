"""NMS against OpenCV's and against a plain quadratic one in float64."""

from __future__ import annotations

import time
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamd.heads.nms import MAX_CANDIDATES, nms


def boxes(count: int, seed: int, classes: int = 3) -> tuple[Any, Any, Any]:
    random = np.random.default_rng(seed)
    corner = random.uniform(0, 200, (count, 2))
    size = random.uniform(10, 120, (count, 2))
    xyxy = np.concatenate([corner, corner + size], axis=1).astype(np.float32)
    # Distinct scores: equal ones may be visited in any order.
    score = random.permutation(np.linspace(0.1, 0.99, count)).astype(np.float32)
    return xyxy, score, random.integers(0, classes, count).astype(np.int32)


def plain(xyxy: Any, score: Any, class_id: Any, iou: float, *, agnostic: bool) -> list[int]:
    kept: list[int] = []
    for i in np.argsort(-score, kind="stable").tolist():
        a = xyxy[i].astype(np.float64)
        for j in kept:
            if not agnostic and class_id[i] != class_id[j]:
                continue
            b = xyxy[j].astype(np.float64)
            w = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
            h = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
            union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h
            if w * h / union > iou:
                break
        else:
            kept.append(i)
    return kept


@given(st.integers(0, 60), st.integers(0, 10_000), st.sampled_from([0.3, 0.45, 0.6, 0.9]), st.booleans())
@settings(max_examples=150, deadline=None)
def test_equals_the_plain_algorithm(count: int, seed: int, iou: float, agnostic: bool) -> None:
    xyxy, score, class_id = boxes(count, seed)
    found = nms(xyxy, score, class_id, iou, 300, agnostic=agnostic).tolist()
    assert found == plain(xyxy, score, class_id, iou, agnostic=agnostic)


@pytest.mark.parametrize("seed", range(20))
def test_equals_opencv(seed: int) -> None:
    xyxy, score, class_id = boxes(80, seed)
    xywh = np.concatenate([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], axis=1)
    expected = cv2.dnn.NMSBoxesBatched(xywh.tolist(), score.tolist(), class_id.tolist(), 0.0, 0.5)
    assert set(nms(xyxy, score, class_id, 0.5, 300).tolist()) == set(np.asarray(expected).ravel().tolist())


def test_max_det_keeps_the_best() -> None:
    xyxy, score, class_id = boxes(50, 1)
    everything = nms(xyxy, score, class_id, 0.9, 300)
    assert nms(xyxy, score, class_id, 0.9, 5).tolist() == everything[:5].tolist()


def test_an_iou_of_exactly_the_threshold_keeps_both() -> None:
    xyxy = np.array([[0, 0, 10, 10], [0, 0, 10, 5]], np.float32)
    assert len(nms(xyxy, np.array([0.9, 0.8], np.float32), np.zeros(2, np.int32), 0.5, 10)) == 2


def test_a_frame_full_of_boxes_is_bounded() -> None:
    xyxy, score, class_id = boxes(30_000, 2, classes=80)
    started = time.process_time()
    kept = nms(xyxy, score, class_id, 0.99, 30_000)
    assert len(kept) <= MAX_CANDIDATES
    assert time.process_time() - started < 5
