"""Trackers that only say which box continues which track."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from streamd.analysis.tracking import Observation, StreamTracks, Tracked, TrackingSettings
from streamd.analysis.tracking.pairing import Known, PairingTracker, Seen
from streamd.testing.scenes import SIZE, boxes, play


class Scripted(PairingTracker):
    """Says what it is told to, and keeps what it was shown."""

    def __init__(self, answer: Callable[[], Iterable[tuple[int, int]]], **settings: Any) -> None:
        super().__init__(TrackingSettings(kind="scripted", **settings))
        self.answer = answer
        self.shown: list[tuple[Known, Seen]] = []

    def pair(self, known: Known, seen: Seen) -> Iterable[tuple[int, int]]:
        self.shown.append((known, seen))
        return self.answer()


TWO = boxes((100, 100, 40, 80), (300, 200, 60, 90, 0.9))
MOVED = boxes((50, 50, 10, 10, 0.05), (310, 200, 60, 90, 0.8), (104, 100, 40, 80))


def test_pairs_continue_tracks_and_the_rest_begins_some() -> None:
    tracker = Scripted(lambda: [(1, 0)], low=0.2)
    step = play(tracker)
    first = step(0, TWO)
    assert sorted(first.id.tolist()) == [1, 2]
    assert tracker.shown == [], "nothing can be paired yet"
    second = step(0.04, MOVED)
    assert second.id.tolist() == [0, first.id[1], 3], "too weak; paired; new, as nobody paired it"
    known, seen = tracker.shown[0]
    assert known.xyxy == pytest.approx(TWO[0])
    assert (known.class_id.tolist(), known.confirmed.tolist()) == ([0, 0], [True, True])
    assert known.unseen_s == pytest.approx([0.04, 0.04])
    assert seen.xyxy == pytest.approx(MOVED[0][1:])
    assert seen.score == pytest.approx(MOVED[1][1:])
    tracker.answer = list
    step(0.08, MOVED)
    known, _ = tracker.shown[1]
    assert known.velocity[1, 0] > 0
    assert known.unseen_s == pytest.approx([0.08, 0.04, 0.04])


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([(0, 0), (0, 1)], "pair names a track twice: [0, 0]"),
        ([(0, 1), (1, 1)], "pair names a box twice: [1, 1]"),
        ([(2, 0)], "pair names a track that does not exist: [2], where there are 2"),
        ([(0, -1)], "pair names a box that does not exist: [-1], where there are 2"),
        (itertools.repeat((0, 1), 10**7), "pair names a track twice: [0, 0, 0]"),
        ([3], "'int' object is not subscriptable"),
        (None, "'NoneType' object is not iterable"),
    ],
)
def test_a_pairing_that_cannot_be_costs_the_tracks_and_no_box(pairs: Any, words: str) -> None:
    tracker, state = Scripted(lambda: pairs), StreamTracks()

    def step(i: int) -> Tracked:
        return tracker.step([Observation(state, i * 40_000_000, *TWO, *SIZE)])[0]

    assert sorted(step(0).id.tolist()) == [1, 2]
    failed = step(1)
    assert failed.id.tolist() == [0, 0]
    assert str(failed.error) == words
    assert [each.reason for each in failed.ended] == ["failed", "failed"]
    assert sorted(step(2).id.tolist()) == [3, 4], "it begins again"
