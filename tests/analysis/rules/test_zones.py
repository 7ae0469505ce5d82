"""Presences in a zone: how they begin and end, how long they last, who is inside."""

from __future__ import annotations

from typing import Any

import pytest

from streamd.analysis.rules.settings import ScheduleSettings, TimesSettings, ZoneSettings
from tests.analysis.rules.scene import Scene

YARD = ZoneSettings(name="yard", points=((0.3, 0.3), (0.7, 0.3), (0.7, 0.7), (0.3, 0.7)))


def scene(**changes: object) -> Scene:
    """Looking at the yard for two seconds already."""
    s = Scene(zones=[YARD.model_copy(update=changes)])
    for _ in range(20):
        s.frame({})
    return s


def yard(s: Scene) -> dict[str, Any]:
    found: dict[str, Any] = s.engine.counters()["zones"]["yard"]
    return found


def test_entered_and_exited_with_dwell() -> None:
    s = scene()
    s.walk(1, (200, 500), (500, 500), (800, 500))
    assert s.told() == [("begin", "entered"), ("end", "exited")]
    begin, end = s.events
    assert begin.id == end.id
    assert begin.box[2] - 20 == 320
    # From x = 320 at frame 4 to beyond x = 710 at frame 18.
    assert end.dwell_s == pytest.approx(1.4, abs=0.11)
    assert (end.observed_s, end.unseen_s) == (end.dwell_s, 0)
    assert end.begin_wall_ns == begin.wall_ns
    assert begin.counts == {"zone/yard/begin/person": 1}
    assert yard(s)["begun"] == yard(s)["ended"] == {"person": 1}


def test_appeared_and_vanished_in_the_middle() -> None:
    s = scene()
    for _ in range(10):
        s.frame({1: (500, 500)})
    for _ in range(20):
        s.frame({})
    s.frame({}, ended=[(1, "lost")])
    assert s.told() == [("begin", "appeared"), ("end", "vanished")]
    end = s.events[-1]
    assert end.dwell_s == pytest.approx(0.9)
    assert end.seq == 29


def test_the_edge_of_the_picture_is_a_way_in_and_out() -> None:
    zone = YARD.model_copy(update={"points": ((0.0, 0.3), (0.7, 0.3), (0.7, 0.7), (0.0, 0.7))})
    s = Scene(zones=[zone])
    for _ in range(20):
        s.frame({})
    s.walk(1, (0, 500), (300, 500), (0, 500), (-5, 500))
    for _ in range(20):
        s.frame({})
    s.frame({}, ended=[(1, "lost")])
    assert s.told() == [("begin", "entered"), ("end", "exited")]


def test_unseen_time_is_told_apart() -> None:
    s = scene()
    for k in range(10):
        s.frame({1: (500 + k, 500)})
    s.t += 3
    for k in range(10):
        s.frame({1: (510 + k, 500)})
    s.walk(1, (520, 500), (800, 500))
    end = s.events[-1]
    assert end.change == "exited"
    assert end.unseen_s == pytest.approx(3.1)
    assert end.observed_s == pytest.approx(end.dwell_s - 3.1)


def test_hysteresis_and_minimum_time() -> None:
    s = scene(hysteresis=0.1)
    s.walk(1, (650, 500), (695, 500))
    for k in range(30):
        s.frame({1: (700 + 8 * (-1) ** k, 500)})
    assert s.told() == [("begin", "appeared")]
    s = scene(min_s=1.0)
    s.walk(1, (250, 500), (350, 500), (200, 500), steps=5)
    assert s.events == []
    assert yard(s)["occupancy"] == 0
    s.walk(1, (200, 500), (350, 500), (350, 500))
    s.walk(1, (350, 500), (350, 500))
    (begin,) = s.events
    assert begin.change == "entered"
    # It is told once the time is over, and tells when the object came in.
    assert begin.box[2] - 20 == pytest.approx(305)


def test_loitering_is_told_once_by_observed_time() -> None:
    s = scene(loiter_s=2.0)
    for k in range(10):
        s.frame({1: (400 + k, 500)})
    s.t += 5
    for k in range(60):
        s.frame({1: (410 + 3 * k, 500)})
    changes = [e.change for e in s.events]
    assert changes.count("loitering") == 1
    assert s.events[-1].observed_s == pytest.approx(2.0, abs=0.11)
    assert s.events[-1].unseen_s == pytest.approx(5.1)


def test_a_parked_car_is_told_once_however_often_its_track_is_lost() -> None:
    s = scene(stationary_s=3.0)
    for k in range(40):
        s.frame({1: (500 + k % 2, 500)}, classes={1: 1})
    assert s.told() == [("begin", "appeared"), ("update", "stationary")]
    for track in range(2, 12):
        for _ in range(21):
            s.frame({})
        s.frame({}, ended=[(track - 1, "lost")])
        for k in range(5):
            s.frame({track: (500 + k % 2, 500)}, classes={track: 1})
        assert yard(s)["labels"] == {"car": 1}
    assert {e.id for e in s.events} == {"e0"}
    assert s.told()[2:] == [("update", "track")] * 10
    assert s.events[-1].track == 11
    s.walk(11, (500, 500), (580, 500))
    assert s.told()[-1] == ("update", "moving")
    s.walk(11, (580, 500), (900, 500))
    assert s.told()[-1] == ("end", "exited")


def test_a_parked_car_that_is_not_found_again_vanishes() -> None:
    s = scene(stationary_s=3.0)
    for _ in range(40):
        s.frame({1: (500, 500)})
    last = s.t
    s.t += 0.5
    s.frame({}, ended=[(1, "lost")])
    for _ in range(20):
        s.frame({})
    assert len(s.events) == 2
    for _ in range(20):
        s.frame({})
    assert s.told()[-1] == ("end", "vanished")
    assert s.events[-1].t_ns == 5 * 10**12 + round(last * 1e9)


def test_an_id_that_changes_inside_goes_on_under_one_event() -> None:
    s = scene()
    for k in range(10):
        s.frame({1: (400 + 10 * k, 500)})
    for k in range(10, 20):
        s.frame({2: (400 + 10 * k, 500)})
    s.frame({2: (600, 500)}, ended=[(1, "lost")])
    s.walk(2, (600, 500), (900, 500))
    assert s.told() == [("begin", "appeared"), ("update", "track"), ("end", "exited")]
    assert len({e.id for e in s.events}) == 1
    assert s.events[-1].track == 2
    assert s.events[-1].dwell_s == pytest.approx(2.4, abs=0.21)


def test_an_outage_makes_occupancy_stale_and_never_zero() -> None:
    s = scene()
    for _ in range(15):
        s.frame({1: (500, 500), 2: (400, 400)}, classes={2: 1})
    assert (yard(s)["occupancy"], yard(s)["stale"]) == (2, False)
    known = s.wall_ns + round(s.t * 1e9)
    s.events += s.engine.down()
    assert (yard(s)["occupancy"], yard(s)["stale"], yard(s)["at"]) == (2, True, known / 1e9)
    s.frame({}, s.t + 20, ended=[(1, "outage"), (2, "outage")])
    assert s.told()[-2:] == [("end", "unknown")] * 2
    assert s.events[-1].t_ns == 5 * 10**12 + known - s.wall_ns
    assert (yard(s)["occupancy"], yard(s)["stale"], yard(s)["at"]) == (2, True, known / 1e9)
    for _ in range(12):
        s.frame({3: (500, 502)})
    assert (yard(s)["occupancy"], yard(s)["stale"]) == (1, False)
    begin = s.events[-1]
    assert (begin.phase, begin.change, begin.previous) == ("begin", "resumed", s.events[0].id)
    assert begin.unseen_s == pytest.approx(20.1, abs=0.11)


def test_a_camera_that_cannot_see_makes_counts_unreliable_and_never_zero() -> None:
    s = scene()
    for _ in range(15):
        s.frame({1: (500, 500)})
    assert (yard(s)["occupancy"], "unreliable" in s.engine.counters()) == (1, False)
    for _ in range(30):
        s.frame({})  # the cover is on, and nobody has said so yet
    s.engine.unreliable(("covered",))
    for k in range(30):
        s.frame({}, ended=[(1, "lost")] if k == 5 else ())
        assert (yard(s)["occupancy"], yard(s)["stale"], s.engine.counters()["unreliable"]) == (None, True, ["covered"])
    assert s.told() == [("begin", "appeared"), ("end", "unknown")], "not seen is not vanished"
    s.engine.unreliable(())
    for _ in range(12):
        s.frame({3: (500, 502)})
    assert (yard(s)["occupancy"], yard(s)["stale"], "unreliable" in s.engine.counters()) == (1, False, False)
    assert (s.events[-1].change, s.events[-1].previous) == ("resumed", s.events[0].id)


def test_a_short_outage_that_the_track_survives_ends_nothing() -> None:
    s = scene()
    for _ in range(10):
        s.frame({1: (500, 500)})
    s.events += s.engine.down()
    s.t += 3
    for _ in range(10):
        s.frame({1: (500, 500)})
    assert s.told() == [("begin", "appeared")]


def test_a_hole_is_an_outage_even_if_nobody_says_so() -> None:
    s = scene()
    for _ in range(15):
        s.frame({1: (500, 500)})
    s.events += s.engine.down()
    # Frames that were under way when the camera went down, then nothing for a while.
    for _ in range(3):
        s.frame({1: (500, 500)})
    s.frame({}, s.t + 20, ended=[(1, "outage")])
    assert (yard(s)["occupancy"], yard(s)["stale"]) == (1, True)
    for _ in range(12):
        s.frame({})
    assert (yard(s)["occupancy"], yard(s)["stale"]) == (0, False)


def test_a_slow_stream_is_not_taken_for_one_that_is_down() -> None:
    s = scene()
    for k in range(40):
        s.frame({1: (500, 500)}, 3.0 + 5 * k)
    assert (yard(s)["occupancy"], yard(s)["stale"]) == (1, False)


def test_unconfirmed_tracks_and_other_classes_are_nobody() -> None:
    s = scene(classes=("car",))
    for _ in range(10):
        s.frame({1: (500, 500), 2: (400, 400)}, classes={2: 1}, confirmed={2: False})
    assert s.events == []
    for _ in range(5):
        s.frame({1: (500, 500), 2: (400, 400)}, classes={2: 1})
    assert [(e.change, e.label, e.track) for e in s.events] == [("appeared", "car", 2)]
    # It began when it came in, not when it was confirmed.
    assert s.events[0].seq == 20


def test_cooldown_keeps_events_back_and_counts() -> None:
    s = scene(cooldown_s=30.0)
    s.walk(1, (200, 500), (500, 500), (800, 500))
    s.walk(2, (200, 500), (500, 500), (800, 500))
    assert s.told() == [("begin", "entered"), ("end", "exited")]
    assert yard(s)["begun"] == {"person": 2}
    assert yard(s)["suppressed"] == 1
    s.t += 30
    s.walk(3, (200, 500), (500, 500), (800, 500))
    assert s.events[2].counts == {"zone/yard/begin/person": 2}


def test_a_schedule_ends_and_resumes_presences() -> None:
    # Scene begins at 15:06:40 UTC.
    hours = ScheduleSettings(
        timezone="UTC", times=(TimesSettings(start="15:06", end="15:07"), TimesSettings(start="15:08"))
    )
    s = scene(schedule=hours)
    for _ in range(300):
        s.frame({1: (500, 500)})
    assert s.told() == [("begin", "appeared"), ("update", "stationary"), ("end", "schedule")]
    assert (yard(s)["occupancy"], yard(s)["stale"]) == (1, True)
    s.t += 45
    for _ in range(60):
        s.frame({1: (500, 500)})
    assert s.told()[3:] == [("begin", "resumed"), ("update", "stationary")]
    assert (yard(s)["occupancy"], yard(s)["stale"]) == (1, False)


@pytest.mark.parametrize("apart", [0.1, 1.04, 2.0, 5.0])
def test_a_slow_stream_is_observed_at_its_own_rate(apart: float) -> None:
    """Every frame of `max_fps: 1` or less is a gap of a second or more: objects loiter and appear there, too."""
    s = Scene([YARD.model_copy(update={"loiter_s": 20.0})])
    for k in range(40):
        s.t += apart * (1.03 if k % 2 else 0.97)
        feet = {1: (500.0, 500.0)} | ({2: (400.0, 500.0)} if k >= 5 else {})
        s.frame(feet, s.t)
    told = [(e.track, e.change) for e in s.events]
    assert (1, "resumed") in told
    assert ((1, "loitering") in told) == (40 * apart > 25)
    assert (2, "appeared") in told or apart * 5 < 1
    loitering = [e for e in s.events if e.change == "loitering" and e.track == 1]
    for e in loitering:
        # The first gap counts as unseen: nobody knows yet that it is the usual one.
        assert 20 <= e.observed_s <= e.dwell_s <= 20 + 2.2 * apart + 0.1
    assert s.engine.counters()["zones"]["yard"]["stale"] is False


def test_a_gap_of_a_fast_stream_is_unseen() -> None:
    s = Scene([YARD.model_copy(update={"loiter_s": 20.0})])
    for k in range(100):
        s.frame({1: (500, 500)}, s.t + (1.5 if k % 20 == 19 else 0.1))
    s.events += s.engine.close()
    assert s.events[-1].unseen_s == pytest.approx(5 * 1.5, abs=0.01)
