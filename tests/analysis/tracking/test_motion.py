"""The filter against the textbook's, with whole covariance matrices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamd.analysis.tracking.motion import Motion
from streamd.analysis.tracking.tracks import AGE, BOX, ID, ONE, ROWS, SPEED, UNSEEN, VARIANCE, WALL

MOTION = Motion(center_noise=1.5, size_noise=0.3, box_noise=0.03, first_speed=1.0, tau=2.0)


def born(boxes: np.ndarray, score: np.ndarray) -> np.ndarray:
    tracks = np.zeros((ROWS, boxes.shape[1]))
    tracks[ONE] = 1
    MOTION.first(tracks, boxes, score)
    return tracks


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_it_is_the_kalman_filter_of_the_textbook(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 4
    boxes, score = rng.uniform(50, 500, (4, n)), rng.uniform(0.1, 1, n)
    tracks = born(boxes, score)
    # Of each track and coordinate: (place, speed) and its 2×2 covariance.
    state = np.stack((boxes, np.zeros_like(boxes)), axis=-1)
    noise = (0.03 * (1.5 - score)) ** 2
    covariance = np.zeros((4, n, 2, 2))
    covariance[..., 0, 0], covariance[..., 1, 1] = noise, 1.0
    strength = np.array([1.5, 1.5, 0.3, 0.3])
    for _ in range(6):
        dt = float(rng.uniform(0, 1.5))
        decay = np.exp(-dt / 2)
        transition = np.array([[1, 2 * (1 - decay)], [0, decay]])
        tracks = MOTION.advance([tracks], [dt], [dt])
        seen, score = tracks[BOX] + rng.normal(0, 5, (4, n)), rng.uniform(0.1, 1, n)
        MOTION.correct(tracks, seen, score)
        for c in range(4):
            process = strength[c] ** 2 * np.array([[dt**3 / 3, dt**2 / 2], [dt**2 / 2, dt]])
            for t in range(n):
                x, p = transition @ state[c, t], transition @ covariance[c, t] @ transition.T + process
                if c >= 2:
                    x[0] = max(x[0], 1)
                measured = np.array([[1.0, 0.0]])
                gain = p @ measured.T / (p[0, 0] + (0.03 * (1.5 - score[t])) ** 2)
                state[c, t] = x + (gain * (seen[c, t] - x[0])).ravel()
                covariance[c, t] = (np.eye(2) - gain @ measured) @ p
        np.testing.assert_allclose(tracks[BOX], state[..., 0], rtol=1e-9)
        np.testing.assert_allclose(tracks[SPEED], state[..., 1], rtol=1e-7, atol=1e-9)
        place, mixed, rate = tracks[VARIANCE].reshape(3, 2, n)
        for group, c in enumerate((0, 2)):
            np.testing.assert_allclose(place[group], covariance[c, :, 0, 0], rtol=1e-9)
            np.testing.assert_allclose(mixed[group], covariance[c, :, 0, 1], rtol=1e-7, atol=1e-12)
            np.testing.assert_allclose(rate[group], covariance[c, :, 1, 1], rtol=1e-9)


def test_each_streams_tracks_move_by_its_own_interval() -> None:
    boxes = np.array([[100.0], [200.0], [40.0], [100.0]])
    one, two = born(boxes, np.array([0.9])), born(boxes, np.array([0.9]))
    for tracks in (one, two):
        tracks[SPEED] = np.array([[50.0], [0.0], [0.0], [0.0]])
        tracks[ID] = 7
    before = one.copy()
    joined = MOTION.advance([one, two, one[:, :0]], [0.0, 1.0, 3.0], [0.0, 0.1, 0.1])
    np.testing.assert_array_equal(one, before)
    np.testing.assert_array_equal(joined[:, 0], one[:, 0])
    assert joined[0, 1] == pytest.approx(100 + 50 * 2 * (1 - np.exp(-0.5)))
    assert joined[[UNSEEN, WALL, AGE, ONE, ID], 1].tolist() == [0.1, 1.0, 0.1, 1.0, 7.0]


def test_a_shrinking_box_stays_a_box() -> None:
    tracks = born(np.array([[100.0], [200.0], [40.0], [100.0]]), np.array([0.9]))
    tracks[SPEED.start + 2] = -500
    tracks = MOTION.advance([tracks], [1.0], [1.0])
    assert tracks[2, 0] == 1
