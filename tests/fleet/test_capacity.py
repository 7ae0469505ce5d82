"""What counts as a box's capacity, and what does not."""

from __future__ import annotations

import pytest

from streamd.fleet.capacity import GRACE_S, PAUSE_S, RECOVERY, SUSTAINED, WINDOW_S, CapacityMeter

STEP_S = 0.5


class Box:
    """Publishes 100 frames a second, some of them late."""

    def __init__(self, stated: float = 1000.0) -> None:
        self.meter = CapacityMeter(stated)
        self.now, self.published, self.missed = 50.0, 0, 0

    def run(self, seconds: float, *, late: float = 0.0, fps: float = 100.0) -> float:
        """Returns the capacity after it."""
        for _ in range(round(seconds / STEP_S)):
            self.now += STEP_S
            self.published += round(fps * STEP_S)
            self.missed += round(late * fps * STEP_S)
            self.meter.take(self.now, self.published, self.missed)
        return self.meter.fps


def test_a_box_that_is_late_all_the_time_is_at_its_limit() -> None:
    box = Box()
    assert box.run(GRACE_S + (SUSTAINED - 1) * (WINDOW_S + STEP_S), late=0.1) == 1000
    assert box.run(WINDOW_S + STEP_S, late=0.1) == pytest.approx(100, rel=0.1)
    assert box.meter.measured
    # What slowed it may be over.
    assert box.run(WINDOW_S + STEP_S) == pytest.approx(100 * RECOVERY, rel=0.1)


def test_a_hiccup_is_no_limit() -> None:
    box = Box()
    box.run(GRACE_S + WINDOW_S)
    for _ in range(20):
        box.run(1.0, late=1.0)
        assert box.run(2 * WINDOW_S) == 1000


@pytest.mark.parametrize("pause", [PAUSE_S + STEP_S, 60.0])
def test_what_piled_up_in_a_pause_is_no_limit(pause: float) -> None:
    """A node that was stopped: its frames come all at once, and late. This took a box for one with 15 frames/s."""
    box = Box()
    box.run(60)
    for _ in range(10):
        box.now += pause
        box.published += 200
        box.missed += 190
        box.meter.take(box.now, box.published, box.missed)
        assert box.run(GRACE_S - STEP_S, late=0.5) == 1000
        assert box.run(3 * WINDOW_S) == 1000


def test_more_than_stated_is_believed_once_it_was_seen() -> None:
    box = Box(50.0)
    assert box.run(GRACE_S + WINDOW_S + 3 * STEP_S) == pytest.approx(100, rel=0.1)


def test_another_process_counts_from_zero() -> None:
    box = Box()
    box.run(60, late=0.1)
    found = box.meter.fps
    assert found < 200
    box.published = box.missed = 0
    assert box.run(GRACE_S, late=1.0) == found
