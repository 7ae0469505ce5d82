"""What is stable in several runs, and what of it another run has found."""

from __future__ import annotations

import numpy as np
import pytest
from glance_truth import Found, Run, Track, Truth, delays, hota, interval

RATE = 10.0


def _track(first: int, last: int, left: float = 0.0) -> Track:
    return {seq: np.array([left, 0, left + 10, 20], np.float32) for seq in range(first, last)}


def _run(events: list[tuple[str, int]], tracks: dict[int, Track] | None = None, frames: int = 100) -> Run:
    return Run([(rule, "car", seq) for rule, seq in events], tracks or {}, [True] * frames)


def test_what_one_run_does_not_find_again_is_not_stable() -> None:
    always = _run([("x1in", 10), ("x1in", 40), ("z00", 60), ("z01", 90)])
    again = [_run([("x1in", 11), ("z00", 60), ("z01", 95)]), _run([("x1in", 10), ("x1in", 40), ("z00", 61)])]
    truth = Truth(RATE, always, again, lambda seq: True)
    assert truth.events == [0, 2], "the second x1in is not in the first run, z01 not in the second"
    events, _, missing = truth.measure(_run([("x1in", 10), ("z00", 63)]))
    assert events == Found(of=2, found=2, soon=1)
    assert missing == [("z00", "car", 60)]


def test_what_is_stable_does_not_depend_on_what_is_measured() -> None:
    truth = Truth(RATE, _run([("x1in", 10)]), [_run([("x1in", 10)])] * 2, lambda seq: True)
    before = list(truth.events)
    truth.measure(_run([]))
    assert truth.events == before == [0]


def test_chance_leaves_out_what_is_measured() -> None:
    always = _run([("x1in", 10), ("x2in", 40)])
    full, half = _run([("x1in", 10), ("x2in", 40)]), _run([("x1in", 10)])
    chance, _ = Truth(RATE, always, [full, full, half], lambda seq: True).chance()
    # Stable without the third run: both, of which it has one; without another one: x1in only.
    assert chance == Found(of=4, found=3, soon=3)


def test_only_what_counts_is_wanted() -> None:
    always = _run([("x1in", 10), ("x1in", 60)], {1: _track(0, 12), 2: _track(45, 80, 50)})
    truth = Truth(RATE, always, [always, always], lambda seq: seq >= 50)
    assert (truth.events, truth.tracks) == ([1], [2])


def test_a_track_is_found_if_one_track_covers_it() -> None:
    always = _run([], {1: _track(0, 50)})
    truth = Truth(RATE, always, [always, always], lambda seq: True)
    broken = _run([], {1: _track(0, 25), 2: _track(25, 50)})
    late = _run([], {7: _track(2, 50)})
    gated = _run([], {7: {seq: box for seq, box in _track(0, 50).items() if seq % 2 == 0}})
    gated.looked = [seq % 2 == 0 for seq in range(100)]
    assert truth.measure(broken)[1] == Found(1, 0, 0)
    assert truth.measure(late)[1] == Found(1, 1, 0)
    assert truth.measure(gated)[1] == Found(1, 1, 1), "only frames that both have looked at count"


def test_events_are_paired_nearest_first() -> None:
    wanted, events = ([("x1in", "car", seq) for seq in seqs] for seqs in ((10, 13), (13, 30)))
    assert delays(wanted, events, RATE) == {1: 0}


def test_the_interval_is_wilsons() -> None:
    assert interval(8, 8) == pytest.approx((0.676, 1.0), abs=0.001)
    assert interval(98, 100) == pytest.approx((0.930, 0.994), abs=0.001)
    assert interval(0, 0) == (0.0, 1.0)


def test_hota_of_swapped_tracks() -> None:
    always = _run([], {1: _track(0, 50), 2: _track(0, 50, 100)})
    swapped = _run([], {1: {**_track(0, 25), **_track(25, 50, 100)}, 2: {**_track(0, 25, 100), **_track(25, 50)}})
    assert hota(always, always) == pytest.approx(100)
    assert hota(always, swapped) < 75
