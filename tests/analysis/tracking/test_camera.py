"""The motion that all tracks share."""

from __future__ import annotations

import numpy as np
import pytest

from streamd.analysis.tracking.camera import common_shift


def test_a_motion_that_most_tracks_share_is_the_cameras() -> None:
    rng = np.random.default_rng(0)
    x, y = 20 + rng.normal(0, 1, 9), -7 + rng.normal(0, 1, 9)
    x[:2] = 300.0, -80.0
    right, down = common_shift(x.tolist(), y.tolist(), 2.0)
    assert right == pytest.approx(20, abs=1.5)
    assert down == pytest.approx(-7, abs=1.5)


def test_noise_is_no_motion() -> None:
    rng = np.random.default_rng(1)
    assert common_shift(rng.normal(0, 1, 20).tolist(), rng.normal(0, 1, 20).tolist(), 2.0) == (0.0, 0.0)


def test_people_who_walk_apart_are_no_camera() -> None:
    assert common_shift([-30, -20, -25, 5, 28, 22, 31], [0.0] * 7, 2.0) == (0.0, 0.0)
