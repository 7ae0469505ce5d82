"""Tracking by overlap alone."""

from __future__ import annotations

import pytest

from streamd.analysis.tracking import open_tracker
from streamd.analysis.tracking.iou import IouSettings
from streamd.testing.scenes import NOTHING, boxes, play


def test_a_box_belongs_to_the_track_that_it_overlaps_most() -> None:
    step = play(open_tracker(IouSettings()))
    step(0, boxes((100, 100, 40, 100), (130, 100, 40, 100)))
    assert step(0.04, boxes((124, 100, 40, 100), (106, 100, 40, 100))).id.tolist() == [2, 1]


def test_a_box_beyond_the_gate_is_another_object() -> None:
    step = play(open_tracker(IouSettings(gate=0.5)))
    step(0, boxes((100, 100, 40, 100)))
    assert step(0.04, boxes((115, 100, 40, 100))).id.tolist() == [2]


def test_nothing_is_predicted() -> None:
    """Someone who walks on behind a post for half a second is someone else; who stands still is not."""
    step = play(open_tracker(IouSettings()))
    for i in range(25):
        step(i / 25, boxes((100 + 8 * i, 100, 40, 100), (900, 100, 40, 100)))
    for i in range(25, 38):
        step(i / 25, NOTHING)
    assert sorted(step(1.52, boxes((100 + 8 * 38, 100, 40, 100), (900, 100, 40, 100))).id.tolist()) == [2, 3]


def test_weak_boxes_have_no_tracks() -> None:
    step = play(open_tracker(IouSettings()))
    step(0, boxes((100, 100, 40, 100)))
    assert step(0.04, boxes((100, 100, 40, 100, 0.3))).id.tolist() == [0]


@pytest.mark.parametrize("rate", [5, 25])
def test_velocity_is_in_pixels_a_second(rate: int) -> None:
    step = play(open_tracker(IouSettings()))
    for i in range(4 * rate):
        tracked = step(i / rate, boxes((100 + 50 * i / rate, 100, 40, 100)))
    assert tracked.velocity[0] == pytest.approx([50, 0], abs=1)
