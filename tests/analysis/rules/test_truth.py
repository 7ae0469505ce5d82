"""The engine against exact truth, for thousands of paths. See `synthetic`."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest

from streamd.analysis.rules import RuleEvent
from tests.analysis.rules import synthetic
from tests.analysis.rules.meetings import meet
from tests.analysis.rules.paths import HEIGHT, LINES, STEP, WIDTH, ZONES, Walk
from tests.analysis.rules.synthetic import Seen, Verdict

PATHS = 2016
SEED = 1
pytestmark = pytest.mark.timeout(600)  # 20 s on a core of its own; the first test does it all


@functools.cache
def outcome() -> tuple[dict[str, Verdict], list[tuple[str, Seen]]]:
    verdicts: dict[str, Verdict] = {}
    worlds = []
    for number in range(PATHS // 12):
        name, seen = synthetic.world(SEED, number)
        synthetic.judge(seen, verdicts.setdefault(name, Verdict()), f"{name} world {number}:")
        worlds.append((name, seen))
    return verdicts, worlds


@pytest.mark.parametrize("way", ["drop 0", "drop 0.2", "drop 0.4", "drop 0.6", "burst", "outage", "restart", "switch"])
def test_crossings_are_counted_exactly_where_they_can_be_observed(way: str) -> None:
    verdict = outcome()[0][way]
    assert verdict.problems == []
    assert verdict.drawn > 120
    assert verdict.certain + verdict.by_guess == verdict.observable


def test_most_crossings_qualify() -> None:
    verdicts = outcome()[0]
    assert verdicts["drop 0.2"].observable >= 0.8 * verdicts["drop 0.2"].drawn
    assert verdicts["drop 0"].observable >= 0.95 * verdicts["drop 0"].drawn
    # Switched ids are told for certain nearly always.
    assert verdicts["switch"].by_guess <= 0.03 * verdicts["switch"].observable


def test_what_cannot_be_observed_is_told_as_uncertain_or_rightly() -> None:
    """Those that nobody tells of are crossings over which no track went: all of a side was missed."""
    for name, verdict in outcome()[0].items():
        assert verdict.uncertain + verdict.counted + verdict.unseen + verdict.observable == verdict.drawn
        if name.startswith("drop"):
            assert verdict.unseen <= 0.05 * verdict.drawn


def test_counters_equal_events() -> None:
    for name, seen in outcome()[1]:
        if name == "restart":
            continue
        for line in LINES:
            told = [e for e in seen.events if e.kind == "line" and e.rule == line.name]
            before_close = seen.counters["lines"][line.name]
            for certain, field in ((True, "crossings"), (False, "uncertain")):
                counted = before_close[field]
                assert isinstance(counted, dict)
                for way in line.directions:
                    events = sum(e.direction == way and e.certain == certain for e in told)
                    assert 0 <= events - sum(counted[way].values()) <= 2


def test_every_event_begins_and_ends_once() -> None:
    for _, seen in outcome()[1]:
        by_id: dict[str, list[RuleEvent]] = {}
        for event in seen.events:
            by_id.setdefault(event.id, []).append(event)
        for events in by_id.values():
            phases = [e.phase for e in events]
            assert phases == ["instant"] or (
                phases[0] == "begin" and phases[-1] == "end" and set(phases[1:-1]) <= {"update"}
            )
            assert all(a.t_ns <= b.t_ns for a, b in itertools.pairwise(events[1:]))


def stays(walk: Walk, zone: int) -> list[tuple[float, float]] | None:
    """When the walk is in the zone, or None where it touches its border in a way that frames may miss."""
    corners = np.array(ZONES[zone].points) * (WIDTH, HEIGHT)
    x, y = walk.xy[:, :1], walk.xy[:, 1:]
    (x1, y1), (x2, y2) = corners.T, np.roll(corners, -1, axis=0).T
    cut = ((y1 > y) != (y2 > y)) & (x < (x2 - x1) * (y - y1) / np.where(y2 == y1, 1, y2 - y1) + x1)
    odd = cut.sum(axis=1) % 2 == 1
    d2 = (x2 - x1) ** 2 + (y2 - y1) ** 2
    share = np.clip(((x - x1) * (x2 - x1) + (y - y1) * (y2 - y1)) / d2, 0, 1)
    off = np.hypot(x - x1 - share * (x2 - x1), y - y1 - share * (y2 - y1)).min(axis=1)
    found: list[tuple[float, float]] = []
    begin: float | None = None
    for k in range(len(odd)):
        if odd[k] and begin is None:
            begin = k
        elif begin is not None and not odd[k] and off[k] > 0.1 * walk.height:
            found.append((walk.start + begin * STEP, walk.start + k * STEP))
            begin = None
    if begin is not None:
        found.append((walk.start + begin * STEP, walk.end))
    bounds = np.nonzero(odd[1:] != odd[:-1])[0] + 1
    # Whoever comes near the border without going over it may be seen on either side.
    near = np.concatenate(([False], off < 0.05 * walk.height, [False]))
    for a, b in zip(np.nonzero(near[1:] & ~near[:-1])[0], np.nonzero(near[:-1] & ~near[1:])[0], strict=True):
        if not ((bounds >= a) & (bounds <= b)).any():
            return None
    edges = [0, *bounds.tolist(), len(odd)]
    for a, b in itertools.pairwise(edges):
        # A visit, or a time between visits, that is short or does not go clear of the border.
        if (b - a) * STEP < 0.6 or off[a:b].max() < 0.2 * walk.height:
            return None
    return found


def test_presences_equal_the_truth() -> None:
    checked = begun = 0
    for name, seen in outcome()[1]:
        if name not in ("drop 0", "drop 0.2"):
            continue
        for number, walk in enumerate(seen.walks):
            for k, zone in enumerate(ZONES):
                truth = stays(walk, k)
                times = [t for t, _ in seen.sights[number]]
                if truth is None or len(times) < 2 or max(b - a for a, b in itertools.pairwise(times)) > 0.5:
                    continue
                ids = {e.id for e in seen.events if e.rule == zone.name and seen.owner[e.track] == number}
                told = [e for e in seen.events if e.id in ids]
                begins = [e for e in told if e.phase == "begin"]
                ends = [e for e in told if e.phase == "end"]
                if any(e.change == "track" for e in told):
                    continue
                checked += 1
                assert len(begins) == len(ends) == len(truth), (name, number, walk.kind, zone.name)
                for (enters, leaves), begin, end in zip(truth, begins, ends, strict=True):
                    begun += 1
                    first = enters == walk.start
                    # Within the first second nobody knows whether an object that is inside had been there before.
                    how = ("appeared", "resumed") if first else ("entered",)
                    assert begin.change in how
                    assert begin.t_ns / 1e9 - 1e6 - enters == pytest.approx(0, abs=0.55)
                    assert end.t_ns / 1e9 - 1e6 - leaves == pytest.approx(0, abs=0.55)
                    assert end.dwell_s == pytest.approx((end.t_ns - begin.t_ns) / 1e9, abs=0.002)
                    assert end.unseen_s == 0
    assert checked > 300
    assert begun > 100


def test_most_people_who_meet_on_a_line_are_both_counted() -> None:
    rng = np.random.default_rng(5)
    met = [meet(rng, turn=False) for _ in range(40)]
    # The rest: the tracker exchanged their ids, and nobody seems to have crossed.
    assert sum(pair.certain == (1, 1) for pair in met) >= 38
    assert all(pair.exchanged and pair.certain == (0, 0) for pair in met if pair.certain != (1, 1))
