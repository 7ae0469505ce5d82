"""Agreement between two models' boxes."""

from __future__ import annotations

import numpy as np
import pytest

from streamd.models.bootstrap import Drop
from streamd.models.gate import _against, agreement, found_again, iou_matrix
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


@pytest.mark.parametrize(
    ("value", "low", "high", "refused", "undecided"),
    [
        (0.002, -0.001, 0.004, None, None),
        (0.004, 0.001, 0.008, None, "128 images cannot tell on which side of --max-drop 0.005 that is; about 1,568"),
        (0.006, 0.001, 0.011, "more than --max-drop 0.005, though 128 images cannot tell", None),
        (0.009, 0.006, 0.012, "more than --max-drop 0.005", None),
    ],
)
def test_a_loss_against_its_limit(
    value: float, low: float, high: float, refused: str | None, undecided: str | None
) -> None:
    refusal, open_ = _against(value, Drop(value, low, high, 128), 0.005)
    assert refusal is None if refused is None else refusal is not None and refusal.startswith(refused)
    assert open_ is None if undecided is None else open_ is not None and open_.startswith(undecided)
    if refused is not None and "though" not in refused:
        assert refusal == refused


def test_one_image_decides_nothing_but_still_refuses() -> None:
    assert _against(0.02, None, 0.01)[0] is not None
    refusal, undecided = _against(0.0, None, 0.01)
    assert refusal is None
    assert undecided is not None
