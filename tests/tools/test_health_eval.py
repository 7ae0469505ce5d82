"""Camera health under seeded faults of real pictures; `tools/health_eval.py` does the same on clips, at length."""

from __future__ import annotations

import health_eval
import numpy as np
import pytest
from health_faults import FAULTS, SIZE, Fault, Scene, another

from streamd.analysis.glance.health import STATES, HealthCore
from streamd.analysis.glance.health_settings import CameraHealthSettings
from tests.conftest import shared


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    pictures = sorted(shared("images/coco_val128").rglob("*.jpg"))
    return [health_eval.load_image(path) for path in (pictures[3], pictures[40])]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_told_within_ten_seconds_and_is_over_when_it_is(fault: Fault, scenes: list[Scene]) -> None:
    for slow in (False, True) if fault.slow else (False,):
        found = health_eval.trial(scenes[0], fault, slow, 5)
        assert found.early == ()
        assert found.after_s is not None
        assert found.over_s is not None


def test_another_scene_is_told(scenes: list[Scene]) -> None:
    found = health_eval.trial(scenes[0], another(scenes[1]), False, 5)
    assert (found.early, found.others) == ((), ())
    assert found.after_s is not None


def test_nothing_is_told_of_a_still_scene_and_of_a_night(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert health_eval.false_alarms(scene, 0.05, 1) == {}
        assert health_eval.night(scene, 0.08, 2) == {}


def test_a_fast_dusk_is_not_another_scene() -> None:
    """A plain scene, whose few edges soon drown in noise."""
    scene = health_eval.load_clip(shared("videos/person-bicycle-car-detection.mp4"))
    assert health_eval.night(scene, 0.1, 3) == {}


@pytest.mark.parametrize("seconds", [5, 10, 20, 40])
@pytest.mark.parametrize("clip", ["person-bicycle-car-detection.mp4", "intel_car-detection.mp4"])
def test_a_dusk_of_less_than_a_minute_is_not_another_scene(clip: str, seconds: float) -> None:
    """What moves and what is lit decides more of what is left then."""
    assert health_eval.dusk(health_eval.load_clip(shared(f"videos/{clip}")), seconds, 3) == {}


def test_what_passes_in_the_dark_is_not_another_scene() -> None:
    scene = health_eval.load_clip(shared("videos/person-bicycle-car-detection.mp4"))
    assert health_eval.dusk(scene, 60, 4) == {}


def test_a_scene_of_little_contrast_is_not_the_same_in_the_dark() -> None:
    office, street = (
        health_eval.load_clip(shared(f"videos/{name}-detection.mp4"))
        for name in ("intel_one-by-one-person", "person-bicycle-car")
    )
    for seed in (1000, 1001):
        assert health_eval.trial(office, another(street), False, seed).after_s is not None


def test_a_scene_that_is_black_for_a_third_can_be_overexposed() -> None:
    path = next(shared("images").glob("coco_val128/images/000000005001.jpg"))
    overexposed = next(fault for fault in FAULTS if fault.name == "overexposed")
    for slow in (False, True):
        assert health_eval.trial(health_eval.load_image(path), overexposed, slow, 47000).after_s is not None


@pytest.mark.parametrize("name", ["000000000143", "000000002923", "000000011051"])
def test_what_grows_white_slowly_is_overexposed_and_not_blurred(name: str) -> None:
    """Scenes of which much is light: what is white has no texture left, whatever the lens does."""
    path = next(shared("images").glob(f"coco_*128/images/{name}.jpg"))
    overexposed = next(fault for fault in FAULTS if fault.name == "overexposed")
    for slow in (False, True):
        found = health_eval.trial(health_eval.load_image(path), overexposed, slow, 0)
        assert found.after_s is not None
        assert (found.early, found.others) == ((), ())


def test_another_scene_becomes_the_scene() -> None:
    rng = np.random.default_rng(1)
    core = HealthCore(CameraHealthSettings(accept_moved_s=60))
    one, other = (rng.integers(30, 220, (9, 16), np.uint8).repeat(10, 0).repeat(10, 1) for _ in range(2))
    told: list[tuple[str, ...]] = []
    for n in range(1000):
        noise = rng.integers(-1, 2, (SIZE[1], SIZE[0]))
        states = core.step(((one if n < 200 else other) + noise).astype(np.uint8), n / 2)
        if not told or told[-1] != states:
            told.append(states)
    assert told == [(), ("moved",), ()]


def test_the_same_pictures_give_the_same_states(scenes: list[Scene]) -> None:
    assert health_eval.trial(scenes[0], FAULTS[0], True, 9) == health_eval.trial(scenes[0], FAULTS[0], True, 9)


def test_an_outage_is_no_frozen_picture() -> None:
    rng = np.random.default_rng(1)
    core = HealthCore(CameraHealthSettings())
    t = 0.0
    for n in range(300):
        t += 60.0 if n % 50 == 49 else 0.5
        picture = rng.integers(30, 220, (9, 16), np.uint8) if n % 50 else np.full((9, 16), 90, np.uint8)
        assert "frozen" not in core.step(picture.repeat(10, 0).repeat(10, 1), t)


def test_every_fault_has_a_state() -> None:
    assert {fault.state for fault in FAULTS} == set(STATES)
