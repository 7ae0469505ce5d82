"""Which frames of objects that are already tracked are looked at."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from streamd.analysis.glance import COLUMNS, ROWS, Glance
from streamd.analysis.glance.gate import Gate
from streamd.analysis.glance.motion import LEARN_S
from streamd.analysis.glance.settings import LookSettings
from streamd.flow.glimpse import NO_PICTURE
from streamd.types import Frame, Tracks

RATE, CELL = 25, 10
SIZE = 4, 8
"""Columns and rows of a thing."""


class Yard:
    """A camera, and a network that finds each thing and answers before the next frame.

    Args:
        tracking: whether boxes have tracks.
        skip_followed: see `LookSettings`.
        look: see `LookSettings`.
    """

    def __init__(self, tracking: bool = True, skip_followed: bool = True, **look: Any) -> None:
        self.gate = Gate(LookSettings(when="motion", skip_followed=skip_followed, **look))
        self.rng = np.random.default_rng(1)
        y, x = np.mgrid[0:ROWS, 0:COLUMNS]
        self.scene: npt.NDArray[np.float64] = 90 + 30 * np.sin(x / 9.0) + 20 * (y > 50)
        self.thing = 200 + self.rng.normal(0, 8, SIZE[::-1])
        self.tracking = tracking
        self.seq = 0
        for _ in range(round((LEARN_S + 3) * RATE)):
            self.show()

    def show(self, *things: tuple[float, float, float], known: int | None = None) -> str:
        """One frame with things (column, row, columns a second); the network finds the first `known` of them. Returns
        why it was looked at, or not."""
        level = self.scene + self.rng.normal(0, 0.5, self.scene.shape)
        for x, y, _ in things:
            level[int(y) : int(y) + SIZE[1], int(x) : int(x) + SIZE[0]] = self.thing
        luma = np.clip(np.rint(level), 0, 255).astype(np.uint8)
        self.seq += 1
        at = self.seq * 10**9 // RATE
        frame = Frame(
            "yard", NO_PICTURE, COLUMNS * CELL, ROWS * CELL, pts_ns=None, captured_ns=at, decoded_ns=at, wall_ns=at,
            seq=self.seq,
        )  # fmt: skip
        self.gate.decide(frame, Glance(luma, at, at, None, frame.width, frame.height, 0, False, False, 0, self.seq))
        assert frame.view is not None
        if frame.view.wanted:
            found = things[:known]
            boxes = np.array([(x, y, x + SIZE[0], y + SIZE[1]) for x, y, _ in found], np.float32).reshape(-1, 4) * CELL
            velocity = np.array([(speed * CELL, 0.0) for *_, speed in found]).reshape(-1, 2)
            tracks = Tracks(np.arange(1, len(found) + 1), np.ones(len(found)), velocity)
            self.gate.answer(frame.view, boxes, tracks if self.tracking else None)
        return frame.view.why

    def walk(
        self, frames: int, *starts: tuple[float, float], speed: float = 8.0, known: int | None = None
    ) -> list[str]:
        """Things that go to the right."""
        moved = [[(x + speed * i / RATE, y, speed) for x, y in starts] for i in range(frames)]
        return [self.show(*things, known=known) for things in moved]


def test_a_tracked_object_is_looked_at_in_every_second_frame() -> None:
    whys = Yard().walk(60, (20, 40))
    assert whys[0] == "motion", "the frame in which it appears"
    assert whys[2:].count("followed") >= 0.4 * len(whys)
    assert all(whys[i + 1] != "followed" for i, why in enumerate(whys[:-1]) if why == "followed"), "never two in a row"


def test_what_appears_besides_is_looked_at_at_once() -> None:
    yard = Yard()
    yard.walk(30, (20, 40))
    x = 20 + 8 * 30 / RATE
    for i in range(10):  # whatever the parity of the frame is
        moved = x + 8 * i / RATE
        assert yard.show((moved, 40, 8.0), (100 + 5 * i, 60, 0.0), known=1) == "motion"


@pytest.mark.parametrize(
    ("starts", "values"),
    [
        ([(20, 40), (22, 46)], {}),
        ([(20, 5 + 10 * i) for i in range(7)], {}),
        ([(20, 40)], {"skip_followed": False}),
        ([(20, 40)], {"tracking": False}),
    ],
    ids=["meet", "many", "off", "no tracks"],
)
def test_where_paths_are_not_certain_every_frame_is_looked_at(
    starts: list[tuple[float, float]], values: dict[str, Any]
) -> None:
    assert "followed" not in Yard(**values).walk(40, *starts)


def test_an_object_too_fast_to_be_followed_is_looked_at() -> None:
    # In two frames, it goes more than half of its width.
    assert "followed" not in Yard().walk(20, (10, 40), speed=0.3 * SIZE[0] * RATE)


def test_motion_in_which_nothing_is_found_is_looked_at_in_every_second_frame() -> None:
    whys = Yard().walk(50, (20, 40), known=0)
    assert whys[0] == "motion"
    assert whys.count("followed") >= 0.3 * len(whys)


def test_by_default_every_frame_in_which_an_object_moves_is_looked_at() -> None:
    assert not LookSettings(when="motion").skip_followed


def test_no_hold_where_nothing_was_found() -> None:
    for known in (0, 1):
        yard = Yard(min_fps=5)
        yard.walk(20, (20, 40), known=known)
        after = [yard.show() for _ in range(45)]
        assert ("hold" in after) == bool(known), after


def test_no_hold_where_only_rain_moved_in_front_of_an_object_that_stands() -> None:
    yard = Yard(min_fps=5)
    for _ in range(3 * RATE):
        yard.show((20, 40, 0.0))
    drops = yard.thing.copy()
    yard.thing = drops - 60
    assert yard.show((20, 40, 0.0)) == "motion"
    yard.thing = drops
    assert "hold" not in [yard.show((20, 40, 0.0)) for _ in range(45)]


def test_an_object_that_is_not_found_again_is_looked_for() -> None:
    yard = Yard()
    still = [yard.show((20, 40, 0.0)) for _ in range(100)]
    assert still[-40:].count("still") >= 38
    whys = [yard.show((20, 40, 0.0), known=0) for _ in range(2 * RATE + 2)]
    assert whys[whys.index("interval") + 1] == "tracks"
    assert whys.count("tracks") == 1


def test_a_look_that_had_to_stand_back_is_made_up_for() -> None:
    yard = Yard()
    whys = yard.walk(30, (20, 40))
    assert "followed" in whys
    x = 20 + 8 * 30 / RATE
    for i in range(6):
        yard.gate.yielded()
        assert yard.show((x + 8 * i / RATE, 40, 8.0)) == "motion"
