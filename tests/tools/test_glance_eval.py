"""The comparison of looking where something moves with looking always."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import av
import glance_day
import glance_eval as tool
import glance_ways
import numpy as np
import pytest
from glance_network import Boxes
from glance_truth import Found, Run

from streamd.analysis.glance.settings import LookSettings
from streamd.heads import DetectSettings
from streamd.types import ModelInfo
from tests.clips import write_clip

FRAMES, BEGINS, ENDS = 470, 300, 340


def _left(index: int) -> int:
    return 20 + 6 * (index - BEGINS)


def _yard(width: int, height: int, index: int, pix_fmt: str) -> av.VideoFrame:
    y, x = np.mgrid[0:height, 0:width]
    planes = np.full((height * 3 // 2, width), 128, np.uint8)
    planes[:height] = 100 + 40 * np.sin(x / 17) + 20 * np.cos(y / 11)
    if BEGINS <= index < ENDS:
        planes[60:110, _left(index) : _left(index) + 25] = 220
    return av.VideoFrame.from_ndarray(planes, format="yuv420p").reformat(format=pix_fmt)


class Truth:
    """Knows where the object is."""

    info = ModelInfo("truth", "0" * 64, ("thing",))
    detect = DetectSettings()

    def boxes(self, clip: Path, seed: int | None = None) -> list[Boxes]:
        out = []
        for i in range(FRAMES):
            n = int(BEGINS <= i < ENDS)
            box = np.array([[_left(i), 60, _left(i) + 25, 110]], np.float32)[:n]
            out.append((box, np.full(n, 0.9, np.float32), np.zeros(n, np.int32)))
        return out


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("eval") / "yard.mp4", frames=FRAMES, size=(320, 180), gop=50, draw=_yard)


def test_what_is_saved_and_missed(clip: Path) -> None:
    network: Any = Truth()
    outcome = tool.evaluate(clip, network, LookSettings(when="motion"), 2, runs=3, with_hota=True)
    assert (outcome.frames, outcome.tracks, outcome.tracks_found, outcome.tracks_soon) == (FRAMES, 1, 1, 1)
    assert outcome.events >= 3, "three upright lines, and zones"
    assert (outcome.events_found, outcome.events_soon, outcome.events_more) == (outcome.events, outcome.events, 0)
    assert outcome.stable_events == Found(outcome.events, outcome.events, outcome.events), "nothing here is chance"
    assert outcome.stable_tracks == Found(1, 1, 1)
    assert outcome.chance_events.soon == outcome.chance_events.of == 2 * outcome.events
    assert outcome.hota is not None
    assert outcome.hota[0] == pytest.approx(100)
    learning = outcome.why["learning"] / FRAMES
    assert 0.03 < outcome.looked - learning < 0.1, "less than the frames in which it moves, and some"
    assert sum(outcome.why.values()) == FRAMES


def test_what_is_missed_is_told(clip: Path) -> None:
    """A mask over everything: only the interval finds the object."""
    network: Any = Truth()
    everything = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0))
    look = LookSettings(when="motion", masks=(everything,), at_least_every_s=1.9)
    outcome = tool.evaluate(clip, network, look, 2, runs=3)
    assert outcome.events_found < outcome.events
    assert outcome.stable_events.soon < outcome.stable_events.of
    assert outcome.missing
    assert outcome.boxes < 0.2


def test_what_depends_on_looking_in_pauses_is_no_truth(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The object is shown in a pause: who seldom looks there misses where it went."""
    network: Any = Truth()
    day = ["noise"] * (ENDS - 1) + [glance_day.ACTIVE] * (FRAMES - ENDS + 1)
    monkeypatch.setattr(glance_ways, "parts_of", lambda _: day)
    runs = glance_ways.look_rarely(clip, network, day, 25.0)
    pause, rest = ENDS - 1, FRAMES - ENDS + 1
    looked = [sum(run.looked) for run in runs]
    assert looked == [math.ceil(pause / round(s * 25)) + rest for s in (0.52, 1.0, 2.0, 4.0)]
    always = glance_ways.look_always(clip, network, runs=3)
    rarely = glance_ways.look_always(clip, network, runs=3, rarely=True)
    assert len(rarely.again) == len(always.again) + len(glance_ways.RARELY_S)
    monkeypatch.setattr(glance_ways, "parts_of", lambda _: [])
    assert len(glance_ways.look_always(clip, network, runs=3, rarely=True).again) == 2, "no day"


def test_events_of_a_day_are_those_without_its_pauses() -> None:
    a = glance_day.ACTIVE
    parts = ["noise"] * 10 + [a] * 10 + ["rain"] * 10 + [a] * 10
    cut = Run(events=[("x1in", "car", 3), ("z00", "car", 9), ("x2in", "car", 15)])
    always = Run(events=[("x1in", "car", 13), ("x2in", "car", 25), ("z00", "car", 30), ("x2in", "car", 38)])
    gated = Run(events=[("x1in", "car", 14), ("z00", "car", 19), ("x2in", "car", 35)])
    assert tool.without_pauses(cut, always, gated, 10.0, parts) == (3, 2, 3)


def test_a_long_day_has_as_many_pauses_as_this_one() -> None:
    """Ten seconds of learning, then a tenth of the pauses and all of the rest, half of the day each."""
    a, rate = glance_day.ACTIVE, 10.0
    parts = ["noise"] * 200 + [a] * 200
    looked = [True] * 100 + [i % 10 == 0 for i in range(100)] + [True] * 200
    found = glance_day.settled(looked, parts, rate)
    assert found is not None
    assert found == pytest.approx((0.1, 1.0, 0.55))
    assert glance_day.settled(looked[:100], parts[:100], rate) is None


def test_a_day_is_mostly_still_and_the_same_for_a_seed(clip: Path, tmp_path: Path) -> None:
    pictures = [np.full((60, 80, 3), level, np.uint8) for level in range(100, 200)]
    first, again, other = (list(glance_day.pieces(pictures, 5.0, 200.0, 0.8, seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for (a, _), (b, _) in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for (a, _), (b, _) in zip(first, other, strict=True))
    parts = [part for _, part in first]
    assert len(parts) == 1000
    assert parts.count(glance_day.ACTIVE) == 200
    assert {*parts} == {*glance_day.TROUBLES, glance_day.ACTIVE}
    played = [int(image[0, 0, 0]) for image, part in first if part == glance_day.ACTIVE]
    assert played == [100 + i % 100 for i in range(200)], "the clip goes on after each pause"


def test_the_pauses_of_a_day_may_be_empty() -> None:
    """Something passes by: it is in no place for most of the time."""
    pictures = [np.full((60, 80, 3), 100, np.uint8) for _ in range(64)]
    for i, picture in enumerate(pictures):
        picture[20:30, i : i + 8] = 220
    plate = glance_day.empty(pictures)
    assert (plate == 100).all()
    shown = list(glance_day.pieces(pictures, 5.0, 60.0, 0.8, 1, plate))
    assert all(image[25].max() < 180 for image, part in shown if part == "noise")
    assert all(image[25].max() == 220 for image, part in shown if part == glance_day.ACTIVE)


def test_a_day_is_written_with_what_it_shows(clip: Path, tmp_path: Path) -> None:
    day = glance_day.make_day(clip, 6.0, 0.5, 1, tmp_path, height=90)
    with av.open(str(day)) as video:
        sizes = [(frame.width, frame.height) for frame in video.decode(video=0)]
    assert sizes == [(160, 90)] * 150
    parts = glance_day.parts_of(day)
    assert parts is not None
    assert parts[100:] == [glance_day.ACTIVE] * 50
    assert glance_day.parts_of(clip) is None
