"""Which frames of objects that are already tracked are looked at."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from streamd.analysis.glance import COLUMNS, ROWS, Glance
from streamd.analysis.glance.answer import Answer, Strayed
from streamd.analysis.glance.gate import Gate
from streamd.analysis.glance.motion import LEARN_S
from streamd.analysis.glance.moved import Moved
from streamd.analysis.glance.settings import LookSettings
from streamd.flow.glimpse import NO_PICTURE
from streamd.types import Frame, Look, Rotation, Tracks

RATE, CELL = 25, 10
SIZE = 4, 8
"""Columns and rows of a thing."""


class Yard:
    """A camera, and a network that finds each thing and answers before the next frame.

    Args:
        tracking: whether boxes have tracks.
        skip_followed: see `LookSettings`.
        size: columns and rows of a thing.
        look: see `LookSettings`.
    """

    def __init__(
        self, tracking: bool = True, skip_followed: bool = True, size: tuple[int, int] = SIZE, **look: Any
    ) -> None:
        self.gate = Gate(LookSettings(when="motion", skip_followed=skip_followed, **look))
        self.rng = np.random.default_rng(1)
        self.scene = self.shifted(0)
        self.size = size
        self.thing = 200 + self.rng.normal(0, 8, size[::-1])
        self.tracking = tracking
        self.tremble = 0.0
        """Columns by which boxes are beside their things."""
        self.seq = 0
        for _ in range(round((LEARN_S + 3) * RATE)):
            self.show()

    @staticmethod
    def shifted(by: float) -> npt.NDArray[np.float64]:
        """The scene, so many columns to the right."""
        y, x = np.mgrid[0:ROWS, 0:COLUMNS]
        scene: npt.NDArray[np.float64] = 90 + 30 * np.sin((x - by) / 3.0) + 20 * (y > 50)
        return scene

    def show(self, *things: tuple[float, float, float], known: int | None = None) -> str:
        """One frame with things (column, row, columns a second); the network finds the first `known` of them. Returns
        why it was looked at, or not."""
        level = self.scene + self.rng.normal(0, 0.5, self.scene.shape)
        for x, y, _ in things:
            column, part = int(x), x - int(x)
            rows, columns = slice(int(y), int(y) + self.size[1]), slice(column, column + self.size[0] + 1)
            ahead, behind = (np.pad(self.thing, ((0, 0), side), constant_values=np.nan) for side in ((1, 0), (0, 1)))
            place = level[rows, columns]
            ahead, behind = (np.where(np.isnan(each), place, each) for each in (ahead, behind))
            level[rows, columns] = part * ahead + (1 - part) * behind
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
            width, height = self.size
            corners = [(x + self.tremble, y, x + self.tremble + width, y + height) for x, y, _ in found]
            boxes = np.array(corners, np.float32).reshape(-1, 4) * CELL
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


def test_a_large_object_is_followed_however_many_cells_it_goes() -> None:
    whys = Yard(size=(24, 30)).walk(30, (5, 40), speed=3.0 * RATE)
    assert whys[3:].count("followed") >= 0.4 * len(whys)


def test_no_object_is_followed_while_the_camera_sways() -> None:
    """Tracks are less certain then."""
    yard = Yard()
    whys = []
    for i in range(60):
        yard.scene = yard.shifted(0.4 * (-1) ** i)
        whys.append(yard.show((20 + 8 * i / RATE, 40, 8.0)))
    assert yard.gate.last is not None
    assert yard.gate.last.shaken
    assert "followed" not in whys[5:]


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


def test_motion_in_which_nothing_is_found_is_looked_at_in_every_frame() -> None:
    """It may be something that the network is about to find."""
    whys = Yard().walk(50, (20, 40), known=0)
    assert {*whys} == {"motion"}


def test_a_track_that_is_new_is_looked_at_in_every_frame() -> None:
    yard = Yard()
    whys = [yard.show((20 + 8 * i / RATE, 40, 8.0), known=int(i >= 9)) for i in range(30)]
    assert "followed" not in whys[:11]
    assert "followed" in whys[11:]


def test_objects_that_are_followed_are_looked_at_less_by_default() -> None:
    assert LookSettings(when="motion").skip_followed


def test_what_shows_as_in_the_last_look_is_not_looked_at_again() -> None:
    """An object that stops strays from the background for a while, without any news."""
    yard = Yard(min_fps=5)
    yard.walk(20, (20, 40))
    x = 20 + 8 * 19 / RATE
    whys = [yard.show((x, 40, 0.0)) for _ in range(RATE)]
    assert whys.count("motion") <= 1
    assert yard.show((x + 1, 40, 8.0)) == "motion", "as soon as it goes on"


def test_what_has_just_appeared_is_looked_at_twice() -> None:
    """A track is confirmed by its second box, also where it stands."""
    yard = Yard()
    assert [yard.show((20, 40, 0.0)) for _ in range(2)] == ["motion", "motion"]
    assert yard.show((20, 40, 0.0)) != "motion"


def test_what_moves_beside_something_that_has_stopped_is_looked_at() -> None:
    yard = Yard()
    yard.walk(20, (20, 40))
    x = 20 + 8 * 19 / RATE
    assert yard.show((x, 40, 0.0), (100, 60, 0.0)) == "motion"


def test_hold_ends_once_two_looks_have_found_all_standing() -> None:
    for known in (0, 1):
        yard = Yard(min_fps=5)
        yard.walk(20, (20, 40), known=known)
        x = 20 + 8 * 19 / RATE
        after = [yard.show((x, 40, 0.0), known=known) for _ in range(45)]
        assert (0 < after.count("hold") <= 2) == bool(known), after


@pytest.mark.parametrize(("relax_to_s", "gaps"), [(8.0, [2, 4, 8, 8]), (1.0, [2, 2, 2, 2])])
def test_a_scene_that_stands_is_looked_at_ever_less(relax_to_s: float, gaps: list[float]) -> None:
    yard = Yard(relax_to_s=relax_to_s, hold_s=0)
    yard.walk(20, (20, 40))
    whys = [yard.show((26, 40, 0.0)) for _ in range(40 * RATE)]
    looks = np.flatnonzero([why not in ("still", "followed") for why in whys])
    between = (np.diff(looks) / RATE).round(1).tolist()
    grown = list(dict.fromkeys(gap for gap in between if gap >= 2))
    assert grown == list(dict.fromkeys(gaps))
    assert yard.show((30, 40, 8.0)) == "motion"
    again = [yard.show((30, 40, 0.0)) for _ in range(3 * RATE)]
    assert "interval" in again, "soon again after motion"


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


def test_boxes_that_tremble_where_nothing_moves_stand_still() -> None:
    yard = Yard(relax_to_s=1)
    whys = []
    for _ in range(20 * RATE):
        yard.tremble = 2.0 * (-1) ** sum(yard.gate.looks.values())
        whys.append(yard.show((20, 40, 8.0)))
    assert "tracks" not in whys[2 * RATE :]
    assert whys.count("interval") >= 8


def test_an_object_that_flickers_does_not_keep_the_network_looking() -> None:
    """It is found in every second look only, and nothing has moved there."""
    yard = Yard(hold_s=0)
    looks = [
        i for i in range(40 * RATE)
        if yard.show((20, 40, 0.0), known=sum(yard.gate.looks.values()) % 2) not in ("still", "followed")
    ]  # fmt: skip
    assert np.diff(looks).max() >= 7.5 * RATE


def test_one_look_after_a_change_of_light_is_enough_where_all_stands() -> None:
    yard = Yard()
    for _ in range(10 * RATE):
        yard.show((20, 40, 0.0))
    yard.scene, yard.thing = 0.6 * yard.scene, 0.6 * yard.thing
    whys = [yard.show((20, 40, 0.0)) for _ in range(2 * RATE)]
    assert whys[0] == "light"
    assert whys.count("hold") == 1


@pytest.mark.parametrize(("since_ns", "moving"), [(0, False), (5, True)], ids=["nothing moved", "not known"])
def test_a_track_stops_only_where_it_is_known_that_nothing_moved(since_ns: int, moving: bool) -> None:
    """The look between may have been given up."""
    shape: tuple[int, int, Rotation, bool] = (COLUMNS * CELL, ROWS * CELL, 0, False)
    velocity = np.zeros((1, 2))
    still = Moved(0.0, 3.0, np.zeros((ROWS, COLUMNS), np.bool_), 0.0)
    before, now = (
        Answer(Look(True, "interval", still, at), np.array([[x, 400, x + 40, 480]], np.float32), velocity,
               np.ones(1), {1: 0})
        for x, at in ((200, 0), (260, 10**9))
    )  # fmt: skip
    now.look.strayed = Strayed(since_ns, None)
    now.since(before, shape)
    assert now.moving == moving
