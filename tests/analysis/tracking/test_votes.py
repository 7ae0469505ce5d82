"""Votes for a track's class."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from streamd.analysis.tracking.tracks import CLASS, LEADER, ROWS, WEIGHT
from streamd.analysis.tracking.votes import first_votes, vote


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 8)), min_size=1, max_size=40))
def test_up_to_four_classes_are_counted_exactly(votes: list[tuple[int, int]]) -> None:
    tracks = np.zeros((ROWS, 1))
    first_votes(tracks, np.array([float(votes[0][0])]), np.array([votes[0][1] / 8]))
    sums = [0.0] * 4
    sums[votes[0][0]] += votes[0][1] / 8
    for class_id, eighths in votes[1:]:
        vote(tracks, np.array([float(class_id)]), np.array([eighths / 8]))
        sums[class_id] += eighths / 8
    assert sums[int(tracks[LEADER, 0])] == max(sums)
    kept = dict(zip(tracks[CLASS, 0].astype(int).tolist(), tracks[WEIGHT, 0].tolist(), strict=True))
    kept.pop(-1, None)
    assert kept == {i: s for i, s in enumerate(sums) if s}


def test_tracks_vote_apart() -> None:
    tracks = np.zeros((ROWS, 3))
    first_votes(tracks, np.array([1.0, 2.0, 3.0]), np.array([0.5, 0.5, 0.5]))
    vote(tracks, np.array([1.0, 9.0, 9.0]), np.array([0.5, 0.4, 0.75]))
    assert tracks[LEADER].tolist() == [1.0, 2.0, 9.0]
    assert tracks[WEIGHT.start].tolist() == [1.0, 0.5, 0.75]


def test_the_most_frequent_of_many_classes_leads() -> None:
    rng = np.random.default_rng(0)
    tracks = np.zeros((ROWS, 1))
    first_votes(tracks, np.array([5.0]), np.array([0.5]))
    for _ in range(400):
        class_id = 7 if rng.random() < 0.5 else rng.integers(10, 60)
        vote(tracks, np.array([float(class_id)]), np.array([0.5]))
    assert tracks[LEADER, 0] == 7
