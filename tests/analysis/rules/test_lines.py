"""What counts as crossing a line. The line is upright at x = 500, from y = 300 down to 700; right of it is "out"."""

from __future__ import annotations

import pytest

from streamd.analysis.rules.settings import LineSettings, ScheduleSettings, TimesSettings
from tests.analysis.rules.scene import Scene

# Going down the picture from the first point to the second, the right hand is at smaller x.
GATE = LineSettings(name="gate", points=((0.5, 0.3), (0.5, 0.7)), directions=("west", "east"))


def scene(**changes: object) -> Scene:
    return Scene(lines=[GATE.model_copy(update=changes)])


def counted(s: Scene) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = s.engine.counters()["lines"]["gate"]["crossings"]
    return found


def uncertain(s: Scene) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = s.engine.counters()["lines"]["gate"]["uncertain"]
    return found


@pytest.mark.parametrize(("start", "end", "way"), [(400, 600, "east"), (600, 400, "west")])
def test_a_crossing_is_told_once_in_its_direction(start: float, end: float, way: str) -> None:
    s = scene()
    s.walk(7, (start, 500), (end, 500), (end, 500))
    assert s.lines() == [(way, True)]
    assert counted(s)[way] == {"person": 1}
    (event,) = s.events
    assert (event.phase, event.rule, event.label, event.track) == ("instant", "gate", "person", 7)
    assert event.point == (0.5, 0.5)
    assert event.counts == {f"line/gate/{way}/person": 1}


def test_an_event_tells_the_first_frame_beyond_the_line_and_the_interpolated_time() -> None:
    s = scene()
    s.walk(1, (405, 500), (605, 500), (605, 500))
    (event,) = s.events
    assert event.seq == 5
    assert event.box == (485, 400, 525, 500)
    # From x = 485 at 0.5 s to 505 at 0.6 s.
    assert event.t_ns == pytest.approx(5 * 10**12 + 0.575e9, abs=1e6)
    assert event.wall_ns - s.wall_ns == pytest.approx(0.575e9, abs=1e6)


def test_nothing_is_counted_past_the_ends() -> None:
    s = scene()
    s.walk(1, (400, 720), (600, 720), (600, 720))
    s.walk(2, (400, 280), (600, 280), (600, 280))
    assert s.events == []


def test_who_goes_around_the_end_and_back_through_is_counted_on_the_way_through_only() -> None:
    s = scene()
    s.walk(1, (400, 500), (400, 800), (600, 800), (600, 500), (400, 500), (400, 500))
    assert s.lines() == [("west", True)]


def test_jitter_on_the_line_counts_nothing() -> None:
    s = scene()
    s.walk(1, (400, 500), (496, 500))
    for k in range(60):
        s.frame({1: (497 if k % 3 else 503, 500)})
    s.walk(1, (496, 500), (400, 500), (400, 500))
    s.engine.close()
    assert s.events == []


def test_stop_and_go_on_the_line_counts_once() -> None:
    s = scene()
    s.walk(1, (400, 500), (496, 500))
    for k in range(60):
        s.frame({1: (496 + 8 * (k % 2), 500)})
    s.walk(1, (504, 500), (600, 500), (600, 500))
    assert s.lines() == [("east", True)]


def test_a_short_excursion_counts_nothing_and_a_long_one_twice() -> None:
    s = scene()
    s.walk(1, (400, 500), (480, 500))
    s.frame({1: (520, 500)})
    s.frame({1: (530, 500)})
    s.walk(1, (480, 500), (400, 500))
    assert s.lines() == []
    s.walk(1, (480, 500), (560, 500), (480, 500), (400, 500))
    assert s.lines() == [("east", True), ("west", True)]


def test_an_unconfirmed_track_counts_nothing_until_it_is_confirmed() -> None:
    s = scene()
    for k in range(20):
        s.frame({1: (400 + 10 * k, 500)}, confirmed={1: False})
    assert s.lines() == []
    s.frame({1: (600, 500)})
    assert s.lines() == [("east", True)]
    s = scene()
    for k in range(20):
        s.frame({1: (400 + 10 * k, 500)}, confirmed={1: False})
    s.events += s.engine.close()
    assert s.lines() == []


def test_a_gap_of_more_than_a_second_is_uncertain() -> None:
    s = scene()
    s.walk(1, (300, 500), (400, 500))
    s.t += 1.1
    s.walk(1, (600, 500), (700, 500), (700, 500))
    assert s.lines() == [("east", False)]
    assert counted(s)["east"] == {}
    assert uncertain(s)["east"] == {"person": 1}
    assert s.engine.counters()["lines"]["gate"]["unobserved_s"] == pytest.approx(1.2)


def test_a_single_box_on_one_side_is_uncertain() -> None:
    s = scene()
    s.frame({1: (450, 500)})
    s.walk(1, (550, 500), (600, 500), (600, 500))
    assert s.lines() == [("east", False)]
    s = scene()
    s.walk(1, (400, 500), (480, 500))
    s.frame({1: (550, 500)})
    s.frame({}, ended=[(1, "lost")])
    for _ in range(40):
        s.frame({})
    assert s.lines() == [("east", False)]


def test_a_track_that_ends_just_behind_the_line_is_counted() -> None:
    s = scene()
    s.walk(1, (400, 500), (480, 500))
    for x in (510, 530, 550):
        s.frame({1: (x, 500)})
    for _ in range(21):
        s.frame({})
    s.frame({}, ended=[(1, "lost")])
    assert s.lines() == [("east", True)]


def test_a_track_that_ends_with_the_camera_just_behind_the_line_is_uncertain() -> None:
    s = scene()
    s.walk(1, (400, 500), (480, 500))
    for x in (510, 530):
        s.frame({1: (x, 500)})
    s.engine.down()
    s.frame({}, s.t + 5, ended=[(1, "outage")])
    assert s.lines() == [("east", False)]


@pytest.mark.parametrize("switch", [470, 490, 510, 530])
def test_an_id_that_changes_at_the_line_counts_once(switch: float) -> None:
    s = scene()
    for k in range(30):
        x = 400 + 10 * k
        s.frame({1 if x < switch else 2: (x, 500)})
    s.frame({}, ended=[(1, "lost")])
    s.frame({}, s.t + 1)
    assert s.lines() == [("east", True)]


def test_an_id_that_changes_among_several_objects_is_uncertain() -> None:
    s = scene()
    for k in range(9):
        s.frame({1: (400 + 10 * k, 500), 2: (400 + 10 * k, 520)})
    for k in range(9, 25):
        s.frame({3: (420 + 10 * k, 500), 4: (420 + 10 * k, 520)})
    assert [certain for _, certain in s.lines()] == [False] * len(s.lines())
    assert len(s.lines()) == 2


def test_an_excursion_in_which_the_id_changes_is_not_counted_as_certain() -> None:
    """Somebody is lost just behind the line, and somebody comes from there before settle_s is over."""
    for beyond, back in (((515, 535), (530, 510, 480, 450, 430)), ((512, 516), (488, 470, 450, 430, 400))):
        s = scene()
        for x in (*range(300, 400, 10), 400, 430, 460, 490, *beyond):
            s.frame({1: (x, 500)})
        for x in back:
            s.frame({2: (x, 500)})
        for k in range(40):
            s.frame({2: (back[-1], 500)}, ended=[(1, "lost")] if k == 15 else [])
        assert s.lines()
        assert not any(certain for _, certain in s.lines())


def test_who_is_beyond_the_line_with_another_id_has_crossed_it() -> None:
    s = scene()
    for x in (*range(300, 400, 10), 400, 430, 460, 490, 515, 535):
        s.frame({1: (x, 500)})
    for x in range(560, 700, 20):
        s.frame({2: (x, 500)})
    for x in range(700, 400, -20):
        s.frame({2: (x, 500)})
    for k in range(20):
        s.frame({2: (400, 500)}, ended=[(1, "lost")] if k == 0 else [])
    assert sorted(s.lines()) == [("east", True), ("west", True)]


def test_a_lost_track_that_comes_back_does_not_count_again_after_its_heir() -> None:
    s = scene()
    s.walk(1, (400, 500), (490, 500))
    for k in range(8):
        s.frame({2: (510 + 10 * k, 500)})
    assert s.lines() == [("east", True)]
    for k in range(8):
        s.frame({1: (600 + k, 500)})
    assert s.lines() == [("east", True)]


def test_two_tracks_are_not_paired_where_the_first_is_seen_again() -> None:
    s = scene()
    s.walk(1, (400, 500), (480, 500))
    s.frame({2: (530, 500)})
    for k in range(12):
        s.frame({1: (480, 500), 2: (530 + k, 500)})
    assert s.lines() == []


def test_a_box_at_the_edge_of_the_picture_does_not_move_its_anchor() -> None:
    # Cut by the left edge, the visible part of the box has its middle farther and farther to the left.
    edge = LineSettings(name="gate", points=((0.012, 0.2), (0.012, 0.8)))
    s = Scene(lines=[edge])
    s.walk(1, (80, 500), (-10, 500), (-10, 500), (80, 500), (80, 500), steps=20)
    s.events += s.engine.close()
    assert s.events == []


def test_classes_schedule_and_cooldown() -> None:
    s = scene(classes=("car",))
    s.walk(1, (400, 500), (600, 500), (600, 500))
    assert s.events == []
    night = ScheduleSettings(timezone="UTC", times=(TimesSettings(start="00:00", end="00:01"),))
    s = scene(schedule=night)
    s.walk(1, (400, 500), (600, 500), (600, 500))
    assert counted(s) == {"west": {}, "east": {}}
    s = scene(cooldown_s=60.0)
    s.walk(1, (400, 500), (600, 500), (600, 500), (400, 500), (400, 500))
    assert s.lines() == [("east", True)]
    assert counted(s) == {"west": {"person": 1}, "east": {"person": 1}}
    s.t += 60
    s.walk(2, (400, 400), (600, 400), (600, 400))
    assert s.events[-1].counts == {"line/gate/west/person": 1, "line/gate/east/person": 1}


def test_half_a_second_is_counted_in_time_and_not_in_frames() -> None:
    for fps in (6, 12, 50):
        s = scene()
        for k in range(4 * fps):
            s.frame({1: (400 + 50 * k / fps, 500)}, k / fps)
        assert s.lines() == [("east", True)], fps
