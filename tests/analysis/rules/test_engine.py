"""What is handed over: at a reload, at a restart, at a change of the picture; and what holds of any input."""

from __future__ import annotations

import gc
import itertools
import json
import tracemalloc
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamd.analysis.rules import RuleEvent
from streamd.analysis.rules.settings import LineSettings, ZoneSettings
from tests.analysis.rules.scene import WALL, Scene

YARD = ZoneSettings(name="yard", points=((0.3, 0.3), (0.7, 0.3), (0.7, 0.7), (0.3, 0.7)))
DOOR = ZoneSettings(name="door", points=((0.4, 0.4), (0.6, 0.4), (0.6, 0.6), (0.4, 0.6)), anchor="center")
GATE = LineSettings(name="gate", points=((0.5, 0.2), (0.5, 0.8)), directions=("west", "east"))


def test_a_reload_ends_only_what_belongs_to_changed_rules() -> None:
    s = Scene([YARD, DOOR], [GATE])
    s.walk(1, (400, 500), (600, 500), (600, 500))
    s.walk(1, (600, 500), (560, 500))
    before = len(s.events)
    bigger = DOOR.model_copy(update={"points": ((0.4, 0.3), (0.6, 0.3), (0.6, 0.6), (0.4, 0.6))})
    told = s.engine.reload([YARD, bigger], [GATE], WALL + 77)
    assert [(e.rule, e.phase, e.change) for e in told] == [("door", "end", "rule_changed")]
    counters = s.engine.counters()
    assert counters["lines"]["gate"]["crossings"]["east"] == {"person": 1}
    assert counters["zones"]["yard"]["since"] == WALL / 1e9
    assert counters["zones"]["door"]["since"] == (WALL + 77) / 1e9
    s.walk(1, (560, 500), (400, 500), (400, 500))
    later = [(e.rule, e.phase, e.change) for e in s.events[before:]]
    assert later[0] == ("door", "begin", "resumed")
    assert ("gate", "instant", "crossed") in later
    assert not any(rule == "yard" and phase == "begin" for rule, phase, _ in later)


def test_a_reload_in_mid_crossing_loses_no_count() -> None:
    s = Scene([], [GATE])
    for x in range(400, 520, 10):
        s.frame({1: (x, 500)})
    assert s.engine.reload([YARD], [GATE], WALL) == []
    s.walk(1, (520, 500), (600, 500))
    assert s.lines() == [("east", True)]


def test_state_goes_on_in_a_successor() -> None:
    s = Scene([YARD], [GATE])
    s.walk(1, (400, 500), (600, 500), (600, 500))
    for _ in range(20):
        s.frame({1: (600, 500)})
    state = json.loads(json.dumps(s.engine.state()))
    assert s.engine.counters()["zones"]["yard"]["occupancy"] == 1
    later = Scene([YARD], [GATE], wall_ns=WALL + 60 * 10**9, state=state)
    zone = later.engine.counters()["zones"]["yard"]
    assert (zone["occupancy"], zone["stale"], zone["since"]) == (1, True, WALL / 1e9)
    for _ in range(15):
        later.frame({9: (601, 500)})
    (begin,) = later.events
    assert (begin.change, begin.previous) == ("resumed", next(e.id for e in s.events if e.kind == "zone"))
    assert begin.unseen_s == pytest.approx(60 - s.t + 0.1, abs=0.11)
    line = later.engine.counters()["lines"]["gate"]
    assert line["crossings"]["east"] == {"person": 1}
    assert line["unobserved_s"] == pytest.approx(60 - s.t, abs=0.2)
    changed = Scene([YARD], [GATE.model_copy(update={"settle_s": 0.7})], wall_ns=WALL + 1, state=state)
    assert changed.engine.counters()["lines"]["gate"]["crossings"] == {"west": {}, "east": {}}
    assert Scene([YARD], [GATE], state={"version": 99}).engine.counters()["zones"]["yard"]["begun"] == {}


def test_closing_ends_everything_and_decides_what_is_under_way() -> None:
    s = Scene([YARD], [GATE])
    for x in range(400, 540, 10):
        s.frame({1: (x, 500)})
    told = s.engine.close()
    assert [(e.rule, e.phase, e.change) for e in told] == [("yard", "end", "stopped"), ("gate", "instant", "crossed")]


def test_a_change_of_size_begins_anew_and_rules_follow_it() -> None:
    s = Scene([YARD], [GATE])
    for _ in range(15):
        s.frame({1: (600, 600)})
    s.size = (2000, 2000)
    s.frame({2: (600, 600)})
    assert s.told() == [("begin", "resumed"), ("end", "unknown")]
    s.walk(2, (590, 600), (800, 600))
    assert s.told()[-1] == ("begin", "entered")


def test_more_tracks_than_there_was_room_for() -> None:
    s = Scene([YARD], [GATE])
    for k in range(30):
        s.frame({n: (400 + 10 * k, 210 + 5 * n) for n in range(100)})
    assert s.engine.counters()["lines"]["gate"]["crossings"]["east"] == {"person": 100}
    for n in range(100):
        s.frame({}, ended=[(n, "outage")])
    assert s.engine._tracks.alive() == []
    assert s.engine.counters()["zones"]["yard"]["occupancy"] == 0


def test_clocks_that_step_back_are_survived() -> None:
    s = Scene([YARD], [GATE])
    for k in range(12):
        s.frame({1: (400 + 10 * k, 500)}, 10 - 0.1 * k)
    s.t = 12
    for k in range(12, 24):
        s.frame({1: (400 + 10 * k, 500)})
    s.events += s.engine.close()
    assert all(e.dwell_s >= 0 for e in s.events)


@st.composite
def films(draw: st.DrawFn) -> list[tuple[float, dict[int, tuple[float, float]], list[tuple[int, str]], bool]]:
    """Frames of objects that jump about, drop out and end, at odd times."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count, t = draw(st.integers(1, 5)), 0.0
    where = rng.uniform(150, 850, (count, 2))
    frames = []
    names = list(range(count))
    fresh = count
    for _ in range(draw(st.integers(1, 60))):
        t += float(rng.choice((0.04, 0.1, 0.4, 1.5)))
        where = np.clip(where + rng.normal(0, 60, where.shape), 30, 990)
        ended: list[tuple[int, str]] = []
        for k in range(count):
            if rng.random() < 0.05:
                ended.append((names[k], str(rng.choice(("lost", "outage")))))
                names[k] = fresh
                fresh += 1
        seen = {names[k]: (float(where[k, 0]), float(where[k, 1])) for k in range(count) if rng.random() < 0.85}
        frames.append((t, seen, ended, bool(rng.random() < 0.03)))
    return frames


def play(film: Any, *, reverse: bool = False) -> tuple[Scene, list[dict[str, Any]]]:
    s = Scene([YARD, DOOR.model_copy(update={"loiter_s": 1.0, "stationary_s": 1.0})], [GATE])
    reports = []
    for t, seen, ended, down in film:
        if down:
            s.events += s.engine.down()
        s.frame(dict(reversed(seen.items())) if reverse else seen, t, ended=ended)
        reports.append(json.loads(json.dumps(s.engine.counters())))
    s.events += s.engine.close()
    return s, reports


def crossings(events: list[RuleEvent]) -> Counter[tuple[str, str | None, bool, str]]:
    return Counter((e.rule, e.direction, e.certain, e.label) for e in events if e.kind == "line")


@settings(max_examples=60, deadline=None)
@given(films())
def test_whatever_happens_events_and_counters_agree(film: Any) -> None:
    s, reports = play(film)
    open_ids: dict[str, RuleEvent] = {}
    done: set[str] = set()
    for event in s.events:
        assert event.id not in done
        assert event.observed_s <= event.dwell_s + 0.002
        assert event.unseen_s >= -0.002
        if event.phase == "instant":
            assert event.kind == "line"
            done.add(event.id)
        elif event.phase == "begin":
            assert event.change in ("entered", "appeared", "resumed")
            assert event.id not in open_ids
            open_ids[event.id] = event
        else:
            begin = open_ids[event.id]
            assert (event.rule, event.label) == (begin.rule, begin.label)
            assert event.t_ns >= begin.t_ns
            if event.phase == "end":
                done.add(event.id)
                del open_ids[event.id]
    assert open_ids == {}
    final = s.engine.counters()
    told = crossings(s.events)
    for way in ("west", "east"):
        for field, certain in (("crossings", True), ("uncertain", False)):
            assert sum(final["lines"]["gate"][field][way].values()) == told["gate", way, certain, "person"]
    for name in ("yard", "door"):
        begun = sum(e.phase == "begin" and e.rule == name for e in s.events)
        assert sum(final["zones"][name]["begun"].values()) == sum(final["zones"][name]["ended"].values()) == begun
    for before, after in itertools.pairwise(reports):
        for way in ("west", "east"):
            for label, n in before["lines"]["gate"]["crossings"][way].items():
                assert after["lines"]["gate"]["crossings"][way][label] >= n
        for name in ("yard", "door"):
            zone = after["zones"][name]
            assert not (zone["stale"] and zone["occupancy"] == 0 and (before["zones"][name]["occupancy"] or 0) > 0)


@settings(max_examples=30, deadline=None)
@given(films())
def test_the_order_of_boxes_in_a_frame_means_nothing(film: Any) -> None:
    one, _ = play(film)
    other, _ = play(film, reverse=True)

    def facts(events: list[RuleEvent]) -> Counter[Any]:
        return Counter((e.phase, e.rule, e.change, e.direction, e.certain, e.t_ns) for e in events)

    assert facts(one.events) == facts(other.events)


@settings(max_examples=60, deadline=None)
@given(films(), st.sampled_from((0.0, 2.0, 1e4)))
def test_whenever_a_process_dies_its_successor_continues_the_counts(film: Any, cooldown_s: float) -> None:
    """From the states that went with the events, or without one where cooldown_s kept it back."""
    quiet = {"cooldown_s": cooldown_s}
    zones, lines = [YARD.model_copy(update=quiet), DOOR], [GATE.model_copy(update=quiet)]
    s = Scene(zones, lines)
    kept: dict[str, Any] = {}
    for t, seen, ended, down in film:
        if down:
            s.events += s.engine.down()
        before = len(s.events)
        s.frame(seen, t, ended=ended)
        told = [e.state for e in s.events[before:] if e.state] + (s.engine.unsaved() if s.engine.silent else [])
        kept |= {each["name"]: each for each in json.loads(json.dumps(told))}
        assert all(bool(e.state) == (e.phase != "update") for e in s.events[before:])
        state = {
            "version": 1, "wall_ns": None, "memory": [],
            "lines": [kept["gate"]] if "gate" in kept else [],
            "zones": [kept[name] for name in ("yard", "door") if name in kept],
        }  # fmt: skip
        was = s.engine.counters()
        now = Scene(zones, lines, wall_ns=WALL + round(t * 1e9), state=state).engine.counters()
        for key in ("crossings", "uncertain"):
            assert now["lines"]["gate"][key] == was["lines"]["gate"][key]
        for name in ("yard", "door"):
            assert now["zones"][name]["begun"] == now["zones"][name]["ended"] == was["zones"][name]["begun"]
            assert now["zones"][name]["dwell_s"] == was["zones"][name]["dwell_s"]
        for name, kind in (("gate", "lines"), ("yard", "zones")):
            assert now[kind][name]["suppressed"] == was[kind][name]["suppressed"]
            if name in kept:
                assert now[kind][name]["since"] == was[kind][name]["since"]


def test_a_cooldown_goes_on_in_a_successor() -> None:
    def cross(s: Scene, track: int) -> list[tuple[str | None, bool]]:
        s.walk(track, (400, 500), (600, 500), (600, 500))
        return s.lines()

    quiet = GATE.model_copy(update={"cooldown_s": 60.0})
    s = Scene([], [quiet])
    assert cross(s, 1) == [("east", True)]
    state = json.loads(json.dumps(s.engine.state()))
    assert cross(Scene([], [quiet], wall_ns=WALL + 30 * 10**9, state=state), 1) == []
    assert cross(Scene([], [quiet], wall_ns=WALL + 70 * 10**9, state=state), 1) == [("east", True)]
    # The clock was stepped back by a day: the rule is silent for a minute, not for a day.
    stepped = Scene([], [quiet], wall_ns=WALL - 86_400 * 10**9, state=state)
    assert cross(stepped, 1) == []
    stepped.t += 61
    assert cross(stepped, 2) == [("east", True)]


def test_only_what_stood_is_resumed_after_a_long_time() -> None:
    yard = YARD.model_copy(update={"stationary_s": 1.0})

    def resumed(away_s: int, *, standing: bool) -> bool:
        s = Scene([yard])
        for k in range(30):
            s.frame({1: (500 if standing else 420 + 4 * k, 500)})
        s.engine.close()
        later = Scene([yard], wall_ns=WALL + away_s * 10**9, state=json.loads(json.dumps(s.engine.state())))
        for _ in range(15):
            later.frame({9: (500 if standing else 540, 500)})
        return later.events[0].previous is not None

    assert resumed(20, standing=True)
    assert resumed(20, standing=False)
    assert resumed(3600, standing=True)
    assert not resumed(3600, standing=False)


def test_short_tracks_leave_nothing_behind() -> None:
    """Tracks that cross, enter and are lost, each for four frames only."""
    rng = np.random.default_rng(3)
    s = Scene([YARD.model_copy(update={"cooldown_s": 5.0}), DOOR], [GATE])
    marks: list[int] = []
    tracemalloc.start()
    try:
        for k in range(1600):
            if k % 4 == 0:
                where, speed = rng.uniform(250, 750, (20, 2)), rng.normal(0, 30, (20, 2))
                lost = [(20 * (k // 4 - 1) + n, "lost") for n in range(20)] if k else []
            s.frame(
                {20 * (k // 4) + n: tuple(where[n] + k % 4 * speed[n]) for n in range(20)},
                ended=lost if k % 4 == 0 else [],
            )
            s.events.clear()
            if k in (799, 1599):
                gc.collect()
                marks.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    counted = s.engine.counters()
    assert sum(counted["zones"]["yard"]["begun"].values()) > 600
    assert sum(sum(way.values()) for way in counted["lines"]["gate"]["uncertain"].values()) > 60
    # 2,500 tracks more: an integer that each one leaves behind would be 80 kB.
    assert marks[1] - marks[0] < 8_000
