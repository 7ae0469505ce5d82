"""Agreement between two models' boxes."""

from __future__ import annotations

import numpy as np
import pytest

from streamd.models.gate import agreement, found_again, iou_matrix
from tests.models.test_evaluate import boxes

A = (0, 0.9, 10.0, 10.0, 50.0, 50.0)
B = (1, 0.5, 60.0, 60.0, 90.0, 90.0)


def test_iou() -> None:
    a = np.array([[0, 0, 10, 10]], np.float32)
    b = np.array([[0, 0, 10, 5], [20, 20, 30, 30], [0, 0, 10, 10]], np.float32)
    assert iou_matrix(a, b)[0] == pytest.approx([0.5, 0, 1])


def test_a_model_agrees_with_itself() -> None:
    assert agreement([boxes(A, B)], [boxes(A, B)]) == (1.0, 4)


@pytest.mark.parametrize(
    ("other", "share"),
    [
        ([A], 2 / 3),  # one lost: 1 of 2 found, 1 of 1 back
        ([A, (0, 0.5, 60.0, 60.0, 90.0, 90.0)], 0.5),  # another class
        ([A, (1, 0.5, 75.0, 60.0, 105.0, 90.0)], 0.5),  # moved by half its width: IoU 1/3
        ([A, (1, 0.2, 60.0, 60.0, 90.0, 90.0)], 1.0),  # a weaker score is still the same box
        ([A, (1, 0.1, 60.0, 60.0, 90.0, 90.0)], 2 / 3),  # too weak
        ([A, B, (2, 0.6, 0.0, 0.0, 20.0, 20.0)], 4 / 5),  # one invented
    ],
)
def test_what_counts_as_disagreement(other: list[tuple[int, float, float, float, float, float]], share: float) -> None:
    assert agreement([boxes(A, B)], [boxes(*other)])[0] == pytest.approx(share)


def test_one_box_is_found_once_and_boxes_without_area_do_not_count() -> None:
    assert found_again(boxes(A, A), boxes(A)) == (1, 2)
    assert found_again(boxes((0, 0.9, 5, 5, 5.5, 80)), boxes(A)) == (0, 0)
    assert agreement([boxes()], [boxes()]) == (0.0, 0)
