"""What counts as motion in a small picture, and what does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from streamd.analysis.glance import COLUMNS, ROWS, Glance
from streamd.analysis.glance.motion import LEARN_S, Motion
from streamd.analysis.glance.moved import Moved

RATE = 25
PART = 25 * RATE
Picture = npt.NDArray[np.float64]
Change = Callable[[Picture, int, np.random.Generator], Picture]


def scene() -> Picture:
    """A street: edges, texture and flat areas."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[0:ROWS, 0:COLUMNS]
    out: Picture = 90 + 40 * np.sin(x / 9.0) + 25 * (y > 50) + rng.normal(0, 6, (ROWS, COLUMNS))
    out[20:40, 30:60] = 170
    return out


class Camera:
    """A camera at a still scene whose noise is that of means over a cell's 48 pixels."""

    def __init__(self, noise: float = 0.7, **values: Any) -> None:
        self.rng = np.random.default_rng(1)
        self.noise, self.seq = noise, 0
        self.motion = Motion(**values)
        self.scene = scene()

    def glance(self, picture: Picture) -> Glance:
        level = picture + self.rng.normal(0, self.noise, picture.shape)
        luma = np.clip(np.rint(level), 0, 255).astype(np.uint8)
        self.seq += 1
        return Glance(luma, self.seq * 10**9 // RATE, 0, None, 1920, 1080, 0, False, False, 0, self.seq)

    def show(self, seconds: float, change: Change = lambda p, i, rng: p) -> list[Moved]:
        """The scene with a change, for some time."""
        return [
            self.motion.step(self.glance(change(self.scene.copy(), i, self.rng))) for i in range(round(seconds * RATE))
        ]

    def learned(self) -> Camera:
        self.show(LEARN_S + 2)
        assert not self.motion.learning
        return self


def moving(moved: list[Moved]) -> int:
    return sum(m.moving for m in moved)


def put(x: float, y: float, width: float, height: float, contrast: float) -> Change:
    """An object at a place in cells, drawn with the share of each cell that it covers."""

    def change(picture: Picture, i: int, rng: np.random.Generator) -> Picture:
        rows = np.clip(np.minimum(np.arange(ROWS) + 1, y + height) - np.maximum(np.arange(ROWS), y), 0, 1)
        columns = np.clip(np.minimum(np.arange(COLUMNS) + 1, x + width) - np.maximum(np.arange(COLUMNS), x), 0, 1)
        drawn: Picture = picture + contrast * rows[:, None] * columns[None, :]
        return drawn

    return change


@pytest.mark.parametrize("noise", [0.2, 0.7, 2.0])
def test_a_still_scene_is_still(noise: float) -> None:
    camera = Camera(noise).learned()
    assert moving(camera.show(30)) == 0


@pytest.mark.parametrize(
    ("width", "height", "contrast"), [(1.0, 2.5, 30), (4, 8, 12), (0.4, 3, 60), (20, 30, 8)],
    ids=["small", "pale", "thin", "large and pale"],
)  # fmt: skip
def test_what_appears_is_seen_in_its_first_frame(width: float, height: float, contrast: float) -> None:
    camera = Camera().learned()
    for x, y in ((10.0, 10.0), (80.5, 60.3), (140.2, 30.7)):
        assert moving(camera.show(3)) <= 25, "the trace of the last one is gone soon"
        assert camera.show(1 / RATE, put(x, y, width, height, contrast))[0].moving
        camera.show(5)


def test_what_crosses_the_picture_is_seen_in_every_frame() -> None:
    camera = Camera().learned()
    moved = camera.show(4, lambda p, i, rng: put(10 + i * 0.5, 45, 2, 5, 35)(p, i, rng))
    assert moving(moved) == len(moved)


def test_what_stands_still_becomes_background() -> None:
    camera = Camera().learned()
    assert moving(camera.show(1, put(50, 50, 6, 10, 40))) >= 0.3 * RATE
    assert moving(camera.show(3, put(50, 50, 6, 10, 40))) == 0
    assert camera.show(1 / RATE, put(50.6, 50, 6, 10, 40))[0].moving, "and is seen when it goes on"


def breathing(picture: Picture, i: int, rng: np.random.Generator) -> Picture:
    """Every fiftieth picture, a key frame, is coded anew; errors build up in between."""
    phase = i % 50
    picture += (phase / 50) * 2.0 * np.sign(np.sin(np.arange(COLUMNS) * 1.7))[None, :]
    return picture


def slow_light(picture: Picture, i: int, rng: np.random.Generator) -> Picture:
    return picture * (1 - 0.3 * min(i / (30 * RATE), 1))


def shaking(picture: Picture, i: int, rng: np.random.Generator) -> Picture:
    """Up to a third of a cell, 4 pixels at 1080p, in both directions."""
    dx, dy = 0.33 * np.sin(i / 3), 0.25 * np.sin(i / 2.3)
    across = (1 - abs(dx)) * picture + abs(dx) * np.roll(picture, int(np.sign(dx)), axis=1)
    shaken: Picture = (1 - abs(dy)) * across + abs(dy) * np.roll(across, int(np.sign(dy)), axis=0)
    return shaken


def dazzling(picture: Picture, i: int, rng: np.random.Generator) -> Picture:
    """It becomes lighter, and much of the picture is white then."""
    lit: Picture = np.minimum((picture + 60) * (1 + 0.4 * np.sin(i / 100)), 235)
    return lit


def exposure(picture: Picture, i: int, rng: np.random.Generator) -> Picture:
    """A camera that cannot make up its mind."""
    gain = float(np.sin(i / 6))
    return picture * (1 + 0.06 * gain) + 3 * gain


@pytest.mark.parametrize("trouble", [breathing, slow_light, exposure, dazzling])
def test_troubles_are_no_motion(trouble: Change) -> None:
    camera = Camera().learned()
    moved = camera.show(30, trouble)
    # A beginning may be noticed; it does not go on.
    assert moving(moved) <= 0.02 * len(moved), (moving(moved), max(m.score for m in moved))
    seen = camera.show(0.2, lambda p, i, rng: put(70, 40, 3, 6, 45)(trouble(p, i + 30 * RATE, rng), i, rng))
    assert all(m.moving for m in seen), "what moves meanwhile is seen"


def test_what_comes_in_at_the_edge_of_a_shaking_picture_is_no_motion() -> None:
    camera = Camera().learned()
    beyond = np.random.default_rng(5).uniform(20, 230, ROWS)

    def shaken(picture: Picture, i: int, rng: np.random.Generator) -> Picture:
        """Up to 0.6 cells; what is beyond the edge comes in, and is another thing after each gust."""
        dx = 0.6 * np.sin(2 * np.pi * i / 11) * np.sin(2 * np.pi * i / 170)
        out: Picture = (1 - abs(dx)) * picture + abs(dx) * np.roll(picture, int(np.sign(dx)), axis=1)
        out[:, -1] = (1 - abs(dx)) * picture[:, -1] + abs(dx) * np.roll(beyond, i // 85)
        return out

    moved = camera.show(10, shaken)
    assert moved[-1].shaken
    assert not [m.score for m in moved if m.shaken and m.moving and m.place % COLUMNS >= COLUMNS - 2]
    seen = camera.show(0.2, lambda p, i, rng: shaken(put(COLUMNS - 6, 40, 5, 9, 60)(p, i, rng), i, rng))
    assert all(m.moving for m in seen), "what has come in is seen"


def test_what_stops_while_the_camera_shakes_is_still() -> None:
    camera = Camera().learned()

    def shaken(place: float) -> Change:
        return lambda p, i, rng: shaking(put(place, 45, 5, 9, 50)(p, i, rng), i, rng)

    camera.show(4, lambda p, i, rng: shaking(put(10 + 0.3 * i, 45, 5, 9, 50)(p, i, rng), i, rng))
    camera.show(1.5, shaken(40.0))
    stopped = camera.show(10, shaken(40.0))
    assert stopped[-1].shaken
    assert moving(stopped) <= 0.05 * len(stopped)
    goes_on = camera.show(3, lambda p, i, rng: shaking(put(40 + 0.4 * i, 45, 5, 9, 50)(p, i, rng), i, rng))
    assert moving(goes_on) >= 0.9 * len(goes_on)


def downpour(picture: Picture, i: int, rng: np.random.Generator) -> Picture:
    """Streaks three rows long, all over."""
    for y, x in zip(rng.integers(0, ROWS - 3, 40), rng.integers(0, COLUMNS, 40), strict=True):
        picture[y : y + 3, x] += 12
    return picture


def test_rain_is_no_motion_before_the_network_says_so() -> None:
    camera = Camera().learned()
    moved = camera.show(20, downpour)
    assert moving(moved) <= 0.02 * len(moved)
    walks = camera.show(2, lambda p, i, rng: downpour(put(30 + 0.3 * i, 40, 2, 4, 35)(p, i, rng), i, rng))
    assert not walks[0].moving, "a small thing is one more spark at first"
    assert walks[4].moving
    assert moving(walks[4:]) >= 0.7 * len(walks[4:])
    large = camera.show(1 / RATE, lambda p, i, rng: downpour(put(100, 40, 4, 8, 35)(p, i, rng), i, rng))
    assert large[0].moving, "a large one is not"


def rain(picture: Picture, i: int, rng: np.random.Generator) -> Picture:
    y, x = rng.integers(0, ROWS - 2, 40), rng.integers(0, COLUMNS, 40)
    picture[y, x] += 6
    picture[y + 1, x] += 6
    return picture


def clock(picture: Picture, i: int, rng: np.random.Generator) -> Picture:
    second = i // RATE
    picture[2:5, 140:144] += 60 * ((second * 7919) % 5 / 4 - 0.5)
    return picture


@pytest.mark.parametrize("trouble", [rain, clock, shaking])
def test_what_the_network_finds_nothing_in_is_learned(trouble: Change) -> None:
    camera = Camera().learned()
    nothing = np.zeros((ROWS, COLUMNS), np.bool_)

    def part() -> int:
        looked = 0
        for i in range(PART):
            glance = camera.glance(trouble(camera.scene.copy(), i, camera.rng))
            moved = camera.motion.step(glance)
            if moved.moving:
                looked += 1
                camera.motion.answer(moved, nothing)
                camera.motion.absorb(glance, moved)
        return looked

    first, _, third = part(), part(), part()
    assert third <= max(0.02 * PART, first / 5), (first, third)
    assert camera.show(1 / RATE, put(40, 60, 3, 6, 45))[0].moving


def test_a_switched_light_is_looked_at_and_then_still() -> None:
    camera = Camera().learned()
    camera.scene = camera.scene * 0.55 + 30 * (np.mgrid[0:ROWS, 0:COLUMNS][1] > 80)
    moved = camera.show(4)
    assert moved[0].moving
    assert moving(moved[50:]) == 0


@pytest.mark.parametrize("gain", [0.75, 1.3])
def test_a_lamp_is_looked_at_once(gain: float) -> None:
    camera = Camera().learned()
    camera.scene = camera.scene * gain
    moved = camera.show(8)
    assert moved[0].light
    assert moving(moved) == 1
    assert camera.show(1 / RATE, put(50, 50, 3, 6, 45))[0].moving, "and what moves then is seen"


def test_ignored_cells_do_not_count() -> None:
    ignored = np.zeros((ROWS, COLUMNS), np.bool_)
    ignored[:, :80] = True
    camera = Camera(ignored=ignored).learned()
    left = camera.show(1 / RATE, put(20, 20, 5, 10, 60))[0]
    assert left.score == 0.0
    assert not left.cells.any()
    assert camera.show(1 / RATE, put(120, 20, 5, 10, 60))[0].moving


def test_sensitivity_is_found_or_fixed() -> None:
    camera = Camera().learned()
    assert camera.motion.sensitivity == 5.0
    assert Camera(sensitivity=10).motion.threshold == 1.5
    weak = put(50, 50, 1, 1, 11)
    low, high = Camera(sensitivity=1).learned(), Camera(sensitivity=10).learned()
    assert not low.show(1 / RATE, weak)[0].moving
    assert high.show(1 / RATE, weak)[0].moving


def test_another_connection_begins_with_what_was_learned() -> None:
    camera = Camera().learned()
    camera.motion.reset()
    camera.scene = np.roll(camera.scene, 30, axis=1)
    assert [m.light for m in camera.show(3)][:2] == [True, False]
    assert not camera.motion.learning


def test_what_stops_is_background_as_it_is_however_much_else_moves() -> None:
    """The background says nothing of a shift where something has stopped in front of it."""
    camera = Camera().learned()
    camera.scene[40:70, 60:100] = 190
    camera.learned()

    def crowd(picture: Picture, i: int, rng: np.random.Generator) -> Picture:
        moves = min(i, 15)
        for n in range(12):
            picture = put(62 + 3 * n + 0.2 * moves, 42 + 2 * n, 1.7, 5, -150)(picture, i, rng)
        return (picture + np.roll(picture, 1, axis=1) * 0.04) / 1.04  # softer for a while

    moved = camera.show(3, crowd)
    assert moved[5].moving
    assert moving(moved[35:]) == 0
    shown = crowd(camera.scene.copy(), 74, camera.rng)
    assert np.abs(camera.motion._background - shown)[42:66, 62:98].max() < 12


def test_what_is_white_does_not_run_ahead_of_the_light() -> None:
    camera = Camera()
    camera.scene[10:40, 90:140] = 215
    camera.scene[60:80, 20:50] = 225
    camera.learned()

    def light(picture: Picture, i: int, rng: np.random.Generator) -> Picture:
        lit: Picture = np.minimum(picture * (1 + 0.3 * np.sin(np.pi * i / (8 * RATE))), 235)
        return lit

    moved = camera.show(8, light)
    assert moving(moved) == 0
    assert camera.motion._background.max() < 240
    assert camera.motion._past.max() < 240


def test_rain_that_thins_out_is_still_rain() -> None:
    camera = Camera().learned()

    def rain(drops: int) -> Change:
        def change(picture: Picture, i: int, rng: np.random.Generator) -> Picture:
            for _ in range(drops):
                y, x = rng.integers(0, ROWS - 3), rng.integers(0, COLUMNS)
                picture[y : y + 3, x] += 30
            return picture

        return change

    camera.show(2, rain(40))
    assert moving(camera.show(2, rain(4))) <= 2
    assert moving(Camera().learned().show(2, rain(4))) >= 10, "a few sparks alone may be anything"
