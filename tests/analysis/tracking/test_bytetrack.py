"""ByteTrack by time: what drops, gaps, outages, loops and clocks do to tracks."""

from __future__ import annotations

import numpy as np
import pytest

from streamd.analysis.tracking import open_tracker
from streamd.analysis.tracking.bytetrack import ByteTrackSettings
from streamd.analysis.tracking.observation import EndReason
from streamd.testing.scenes import NOTHING, Play, boxes, play
from streamd.types import Box

PERSON = boxes((100, 100, 40, 100))


def stream(**options: object) -> Play:
    return play(open_tracker(ByteTrackSettings.model_validate(options)))


def walker(at_s: float, speed: float = 120, score: float = 0.9) -> tuple[float, ...]:
    return (100 + speed * at_s, 300, 40, 100, score)


def test_a_weak_box_prolongs_a_track_and_begins_none() -> None:
    step = stream()
    assert step(0, boxes(walker(0))).id.tolist() == [1]
    for i in range(1, 10):
        assert step(i / 25, boxes(walker(i / 25, score=0.15), (900, 300, 40, 100, 0.35))).id.tolist() == [1, 0]
    assert step(0.4, boxes(walker(0.4, score=0.05))).id.tolist() == [0], "below low"


def test_a_weak_box_finds_a_lost_track() -> None:
    step = stream()
    for i in range(25):
        step(i / 25, boxes(walker(i / 25)))
    for i in range(25, 40):
        step(i / 25, NOTHING)
    assert step(1.6, boxes(walker(1.6, score=0.2))).id.tolist() == [1]


def test_boxes_that_do_not_touch_are_never_a_pair() -> None:
    step = stream(gate=0, weak_gate=0, new_gate=0)
    step(0, PERSON)
    assert step(0.04, boxes((900, 500, 40, 100), (600, 500, 40, 100, 0.2))).id.tolist() == [2, 0]


def test_strong_boxes_choose_before_weak_ones() -> None:
    step = stream()
    step(0, PERSON)
    assert step(0.04, boxes((100, 100, 40, 100, 0.3), (106, 104, 40, 100, 0.8))).id.tolist() == [0, 1]


def test_a_track_unseen_for_lost_s_ends_once() -> None:
    step = stream(lost_s=1.0)
    step(0, PERSON)
    step(0.04, PERSON)
    ended = []
    for i in range(2, 60):
        ended += [(i, e) for e in step(i / 25, NOTHING).ended]
    assert [(e.id, e.reason) for _, e in ended] == [(1, "lost")]
    assert ended[0][0] == 27, "0.04 s and a second more"
    assert ended[0][1].age_s == pytest.approx(0.04)
    assert ended[0][1].unseen_s == pytest.approx(1.04)
    assert step(3, PERSON).id.tolist() == [2]


def test_drops_do_not_age() -> None:
    """At 25 pictures a second, 3 of 4 dropped: a second unseen takes four by the clock."""
    step = stream(lost_s=1.0)
    step(0, PERSON)
    ended = []
    for i in range(4, 200, 4):
        ended += [i for _ in step(i / 25, NOTHING, missed=3).ended]
    assert ended == [104]


def test_ages_count_what_was_observed() -> None:
    step = stream()
    step(0, PERSON)
    step(0.04, PERSON)
    # Four seconds without a frame, and nobody knows why: a frame vouches for a tenth of a second at most.
    assert step(4.04, PERSON).age_s[0] == pytest.approx(0.14)
    assert step(4.24, PERSON, missed=4).age_s[0] == pytest.approx(0.18)


def test_the_wall_limit_ends_what_is_not_observed() -> None:
    step = stream(wall_s=3.0)
    step(0, PERSON)
    ended = []
    for i in range(1, 8):
        ended += [(i, e.reason) for e in step(i, NOTHING, missed=24).ended]
    assert ended == [(4, "lost")]


@pytest.mark.parametrize(("gap", "kept"), [(0.5, True), (4.9, True), (5.1, False), (3600, False)])
def test_short_outages_keep_ids_and_longer_ones_end_tracks(gap: float, kept: bool) -> None:
    step = stream()
    for i in range(10):
        step(i / 25, PERSON)
    tracked = step(9 / 25 + gap, PERSON)
    assert tracked.id.tolist() == [1 if kept else 2]
    assert [(e.id, e.reason) for e in tracked.ended] == ([] if kept else [(1, "lost: outage")])
    if not kept:
        assert tracked.ended[0].unseen_s == pytest.approx(gap)


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"begin": "loop"}, "loop"),
        ({"begin": "restart"}, "restart"),
        ({"size": (1280, 720)}, "size"),
        ({"roi": Box(0, 0, 960, 540)}, "crop"),
    ],
)
def test_another_picture_begins_anew(facts: dict[str, object], reason: EndReason) -> None:
    step = stream()
    step(0, PERSON)
    step(0.04, PERSON)
    tracked = step(0.08, PERSON, **facts)
    assert tracked.id.tolist() == [2]
    assert tracked.age_s.tolist() == [0]
    assert [(e.id, e.reason, e.class_id) for e in tracked.ended] == [(1, reason, 0)]
    facts.pop("begin", None)
    assert step(0.12, PERSON, **facts).id.tolist() == [2]


def test_a_loop_may_take_the_clock_back() -> None:
    step = stream()
    step(100.0, PERSON)
    assert step(0.0, PERSON, begin="loop").id.tolist() == [2]
    assert step(0.04, PERSON).age_s[0] == pytest.approx(0.04)


@pytest.mark.parametrize("jump", [-0.001, -1, -86_400])
def test_a_clock_that_steps_back_is_survived(jump: float) -> None:
    step, at = stream(), 100_000.0
    for i in range(50):
        at += jump if i == 25 else 0.04
        tracked = step(at, boxes(walker(i / 25)))
        assert tracked.id.tolist() == [1], i
    assert tracked.velocity[0] == pytest.approx([120, 0], abs=6)
    assert tracked.age_s[0] == pytest.approx(49 / 25)


def test_two_frames_of_the_same_time_are_survived() -> None:
    step = stream()
    for i in range(20):
        for _ in range(2):
            tracked = step(i / 25, boxes(walker(i / 25)))
            assert tracked.id.tolist() == [1]
    assert np.isfinite(step.state.matrix).all()
    assert tracked.velocity[0] == pytest.approx([120, 0], abs=12)


@pytest.mark.parametrize("rate", [5, 12, 25, 60])
def test_velocity_is_in_pixels_a_second_whatever_the_rate(rate: int) -> None:
    step = stream()
    for i in range(3 * rate):
        tracked = step(i / rate, boxes(walker(i / rate, speed=90)))
        assert tracked.id.tolist() == [1]
    assert tracked.velocity[0] == pytest.approx([90, 0], abs=3)


def test_the_gate_widens_with_the_gap() -> None:
    """Half a box's width off: no match a frame later, one after a second without frames."""
    for gap, expected in ((0.04, 2), (1.0, 1)):
        step = stream(gate=0.4)
        for i in range(10):
            step(i / 25, PERSON)
        assert step(9 / 25 + gap, boxes((122, 100, 40, 100))).id.tolist() == [expected]


def test_a_walker_behind_a_post_keeps_the_id() -> None:
    step = stream()
    for i in range(100):
        hidden = 40 <= i < 65
        tracked = step(i / 25, NOTHING if hidden else boxes(walker(i / 25)))
        if not hidden:
            assert tracked.id.tolist() == [1]


def ids_after_a_pan(camera_motion: bool) -> list[int]:
    """Six people stand; the camera pans in jerks by more than their size while the last is hidden."""
    step, pan = stream(camera_motion=camera_motion), 0.0
    for i in range(50):
        if 15 <= i < 35 and i % 2:
            pan += 16
        people = [(200 * k + pan, 300 + 20 * k, 40, 100) for k in range(6)]
        tracked = step(i / 25, boxes(*(people[:5] if 10 <= i < 40 else people)))
    return sorted(tracked.id.tolist())


def test_the_cameras_own_motion_is_taken_out() -> None:
    assert ids_after_a_pan(camera_motion=True) == [1, 2, 3, 4, 5, 6]
    assert ids_after_a_pan(camera_motion=False) == [1, 2, 3, 4, 5, 7]


def test_what_is_published_is_never_a_prediction() -> None:
    step = stream()
    for i in range(10):
        step(i / 25, boxes(walker(i / 25)))
    tracked = step(0.4, NOTHING)
    assert len(tracked.id) == 0
    assert step.state.active == 0
    assert len(step.state) == 1
