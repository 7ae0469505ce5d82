"""The clock of tracks and rules: the camera's media clock where it is sane, and the time of arrival in the long run."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from streamd.analysis.tracking.clock import MediaClock

S = 10**9
START = 500 * S


def times(clock: MediaClock, arrivals: Iterable[tuple[float, float | None]]) -> list[float]:
    """Seconds since the start, of frames that arrived at a time with a time stamp."""
    found = []
    for at, pts in arrivals:
        now = clock.time(START + round(at * S), None if pts is None else round(pts * S))
        found.append((now - START) / S)
    return found


def steps(found: list[float]) -> np.ndarray:
    return np.diff(found)


def test_jitter_of_the_arrival_is_left_out() -> None:
    rng = np.random.default_rng(1)
    late = rng.uniform(0, 0.12, 500)
    found = times(MediaClock(live=True), ((i / 10 + late[i], 1000 + i / 10) for i in range(500)))
    assert np.abs(steps(found) - 0.1).max() < 0.002


@pytest.mark.parametrize("jump", [-3600.0, -2.0, 0.0, 0.7, 5.0, 3600.0])
def test_a_jump_of_the_media_clock_is_no_time(jump: float) -> None:
    found = times(MediaClock(live=True), ((i / 10, i / 10 + (jump if i >= 50 else 0)) for i in range(100)))
    assert np.abs(steps(found) - 0.1).max() < 0.002
    assert found[-1] == pytest.approx(9.9, abs=0.01)


@pytest.mark.parametrize("rate", [0.2, 0.5, 0.98, 1.02, 2.0, 10.0])
def test_a_media_clock_that_runs_slow_or_fast_cannot_stretch_time(rate: float) -> None:
    """A camera that stamps 25 frames a second, and sends fewer in the dark."""
    found = times(MediaClock(live=True), ((i / 10, i * rate / 10) for i in range(6000)))
    assert found[-1] == pytest.approx(599.9, abs=5.1)
    assert found[-1] - found[-601] == pytest.approx(60, rel=0.03)
    assert (steps(found) > 0).all()


def test_frames_that_were_held_up_do_not_add_up() -> None:
    """Every ten seconds nothing arrives for two, then all at once: the people of ten minutes do not stay for twelve."""
    clock = MediaClock(live=True)
    found = times(clock, ((max(i / 25, (i // 250) * 10 + 2.0 + (i % 250) / 1000), i / 25) for i in range(15_000)))
    assert found[-1] - found[0] == pytest.approx(600, abs=6)
    # What they show still goes on at its pace: a tracker's speeds stay right.
    assert np.median(steps(found)) == pytest.approx(0.04, rel=0.2)


def test_without_a_media_clock_it_is_the_arrival() -> None:
    assert times(MediaClock(live=True), [(0, None), (0.5, None), (0.5, None), (2, 7), (3, None)]) == pytest.approx(
        [0, 0.5, 0.5, 2, 3], abs=1e-6
    )


def test_a_file_has_only_its_own_time() -> None:
    found = times(MediaClock(live=False), [(0, 0), (0.001, 10), (0.002, 10.04), (9, 10.08), (9.1, 3), (9.2, 500)])
    assert found == pytest.approx([0, 10, 10.04, 10.08, 10.18, 10.28], abs=1e-6)
