"""Snapshots by their content: is it the best picture of the event?"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from streamd.events.evidence.files import Room
from streamd.events.evidence.snapshots import MAX_OPEN, WAIT_S, SnapshotMaker, quality_of
from streamd.events.record import Event, Media
from streamd.imaging.upright import UprightScaler
from streamd.sources import open_source
from streamd.sources.av import AvStreamSettings
from streamd.types import Boxes, Detections, Frame, StageTimes, Tracks
from tests import marked
from tests.events.evidence.stage import MODEL
from tests.events.journals import until

Box = tuple[float, float, float, float]


def seen(frame: Frame, box: Box, *, track: int = 7, score: float = 0.9) -> Detections:
    return Detections(
        frame.stream, 0, frame.seq, frame.pts_ns, frame.wall_ns, frame.width, frame.height,
        StageTimes(*[frame.captured_ns] * 6), MODEL,
        Boxes(
            np.array([(0, 0, 300, 150), box], np.float32), np.array([0.95, score], np.float32), np.zeros(2, np.int32),
            Tracks(np.array([3, track]), np.zeros(2), np.zeros((2, 2))),
        ),
    )  # fmt: skip


class Maker:
    """A snapshot maker that is not in a hurry."""

    def __init__(self, folder: Path, min_free: int = 0, scale: Any = None) -> None:
        self.links: dict[tuple[str, str], list[Media]] = {}
        self.maker = SnapshotMaker(folder, Room(folder, min_free), self._link, scale or UprightScaler({}))

    def _link(self, event: str, role: str, media: Media) -> None:
        self.links.setdefault((event, role), []).append(media)

    def event(self, kind: Any, id_: str = "e", track: int | None = 7) -> None:
        at_ns = time.time_ns()
        self.maker.event(Event(id=id_, stream="a", kind=kind, rule="gate", label="person", track=track, at_ns=at_ns))

    def show(self, frame: Frame, box: Box, **more: Any) -> None:
        """A frame that the thread has time for."""
        for wanted in self.maker.wanted.get("a", {}).values():
            wanted.due_at = 0.0
        until(lambda: not self.maker._shots.qsize())
        self.maker.take(frame, seen(frame, box, **more))

    def settled(self, event: str = "e") -> Media:
        until(lambda: not self.maker.wanted)
        return self.links[event, "snapshot"][-1]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return marked.write_marked(tmp_path_factory.mktemp("v") / "v.mp4", frames=30)


@pytest.fixture
def frames(video: Path) -> Iterator[list[Frame]]:
    source = open_source(AvStreamSettings(id="a", url=str(video), pace="asap"))
    source.open()
    yield list(source.frames())
    source.close()


def picture(path: str) -> npt.NDArray[Any]:
    image = cv2.imread(path)
    assert image is not None
    return np.asarray(image)


def number(path: str) -> int:
    return marked.number(cv2.cvtColor(picture(path), cv2.COLOR_BGR2GRAY))


def test_the_best_frame_is_the_one_with_the_largest_certain_box(tmp_path: Path, frames: list[Frame]) -> None:
    maker = Maker(tmp_path)
    maker.event("begin")
    maker.show(frames[3], (100, 80, 120, 100))
    maker.show(frames[5], (100, 80, 150, 140))  # the best
    maker.show(frames[7], (100, 80, 152, 141))  # hardly better
    maker.show(frames[9], (100, 70, 170, 150), score=0.3)
    maker.show(frames[11], (0, 60, 120, 150))  # cut off by the edge
    maker.show(frames[13], (10, 10, 310, 150), track=8)  # somebody else
    maker.event("end")
    media = maker.settled()
    assert media.state == "written"
    assert maker.links["e", "snapshot"][0].state == "pending"
    plain = maker.links["e", "snapshot_plain"][-1].path
    assert number(plain) == 5
    image, with_box = picture(plain).astype(int), picture(media.path).astype(int)
    assert image.shape == with_box.shape == (160, 320, 3)
    changed = np.abs(image - with_box).max(axis=2) > 60
    assert changed[80:140, 99:102].mean() > 0.8, "its left edge is drawn"
    assert changed[100:130, 110:140].mean() < 0.1, "its inside is not"
    assert list(tmp_path.rglob("*.partial")) == []


def test_an_instant_has_the_frame_that_decided_it(tmp_path: Path, frames: list[Frame]) -> None:
    maker = Maker(tmp_path)
    maker.event("instant")
    maker.show(frames[4], (100, 80, 120, 100))
    maker.show(frames[6], (100, 80, 160, 140))
    maker.settled()
    assert number(maker.links["e", "snapshot_plain"][-1].path) == 4


def test_an_instant_whose_object_is_not_seen_at_once_waits_for_it(tmp_path: Path, frames: list[Frame]) -> None:
    """A crossing may be decided when its object is hidden for a moment."""
    maker = Maker(tmp_path)
    maker.event("instant")
    maker.show(frames[4], (100, 80, 120, 100), track=8)
    maker.show(frames[5], (100, 80, 160, 140), track=8)
    maker.show(frames[6], (100, 80, 120, 100))
    maker.show(frames[7], (100, 80, 160, 140))
    media = maker.settled()
    plain = maker.links["e", "snapshot_plain"][-1].path
    assert number(plain) == 6
    assert np.abs(picture(plain).astype(int) - picture(media.path)).max() > 60, "its box is drawn"


def test_an_instant_whose_object_is_gone_has_the_first_frame(tmp_path: Path, frames: list[Frame]) -> None:
    maker = Maker(tmp_path)
    maker.event("instant")
    for index in (4, 6):
        maker.show(frames[index], (100, 80, 120, 100), track=8)
    assert maker.settled().state == "written"
    assert number(maker.links["e", "snapshot_plain"][-1].path) == 4


def test_an_instant_without_an_object_waits_for_none(tmp_path: Path, frames: list[Frame]) -> None:
    maker = Maker(tmp_path)
    maker.event("instant", track=None)
    begin = time.monotonic()
    maker.show(frames[4], (100, 80, 120, 100))
    maker.show(frames[6], (100, 80, 120, 100))
    assert maker.settled().state == "written"
    assert time.monotonic() < begin + WAIT_S / 2
    assert number(maker.links["e", "snapshot_plain"][-1].path) == 4


def test_a_first_picture_is_there_while_the_event_goes_on_and_a_better_one_replaces_it(
    tmp_path: Path, frames: list[Frame]
) -> None:
    maker = Maker(tmp_path)
    maker.event("begin")
    maker.show(frames[2], (100, 80, 120, 100))
    until(lambda: ("e", "snapshot_plain") in maker.links)
    path = maker.links["e", "snapshot_plain"][-1].path
    assert number(path) == 2
    maker.show(frames[20], (100, 80, 160, 140))
    maker.event("end")
    maker.settled()
    assert number(path) == 20


def test_without_events_nothing_is_looked_at(tmp_path: Path, frames: list[Frame]) -> None:
    maker = Maker(tmp_path)
    assert maker.maker.wanted == {}
    maker.event("end")
    maker.event("update")
    assert maker.maker.wanted == {}
    assert maker.maker._thread is None


def test_an_event_without_a_frame_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamd.events.evidence.snapshots.WAIT_S", 0.1)
    maker = Maker(tmp_path)
    maker.event("begin")
    maker.event("end")
    assert maker.settled().reason == "no_picture"


def test_a_full_disk_is_told_and_does_not_last(tmp_path: Path, frames: list[Frame]) -> None:
    maker = Maker(tmp_path, min_free=1 << 60)
    maker.event("instant")
    maker.show(frames[4], (100, 80, 120, 100))
    assert maker.settled().reason == "disk_full"
    assert maker.maker.problem.startswith("disk_full")
    maker.maker._room = Room(tmp_path, 0)
    maker.event("instant", "f")
    maker.show(frames[4], (100, 80, 120, 100))
    assert maker.settled("f").state == "written"
    assert maker.maker.problem == ""


def test_room_again_is_found_out_without_another_event(
    tmp_path: Path, frames: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamd.events.evidence.files.PROBE_S", 0.3)
    maker = Maker(tmp_path / "media", min_free=1 << 60)
    maker.event("instant")
    maker.show(frames[4], (100, 80, 120, 100))
    assert maker.settled().reason == "disk_full"
    assert maker.maker.problem.startswith("disk_full")
    maker.maker._room = Room(tmp_path / "media", 0)
    until(lambda: not maker.maker.problem)
    assert list((tmp_path / "media").iterdir()) == []


def test_a_picture_that_cannot_be_made_ends_nothing(tmp_path: Path, frames: list[Frame]) -> None:
    broken = [True]

    def scale(frame: Frame, width: int) -> Any:
        if broken[0]:
            raise RuntimeError("no picture")
        return UprightScaler({})(frame, width)

    maker = Maker(tmp_path, scale=scale)
    maker.event("begin")
    maker.show(frames[4], (100, 80, 120, 100))
    until(lambda: not maker.maker._shots.qsize())
    time.sleep(0.05)
    broken[0] = False
    maker.show(frames[8], (100, 80, 150, 140))
    maker.event("end")
    maker.settled()
    assert number(maker.links["e", "snapshot_plain"][-1].path) == 8


def test_there_are_never_too_many(tmp_path: Path) -> None:
    maker = Maker(tmp_path)
    for i in range(MAX_OPEN + 3):
        maker.event("begin", f"e{i}")
    assert len(maker.maker.wanted["a"]) == MAX_OPEN
    assert maker.links[f"e{MAX_OPEN}", "snapshot"][-1].reason == "too_many"
    assert maker.maker.close(20)


def test_closing_writes_what_there_is(tmp_path: Path, frames: list[Frame]) -> None:
    maker = Maker(tmp_path)
    maker.event("begin")
    maker.show(frames[6], (100, 80, 120, 100))
    assert maker.maker.close(20)
    assert number(maker.links["e", "snapshot_plain"][-1].path) == 6


def test_what_a_box_counts(frames: list[Frame]) -> None:
    whole = quality_of(seen(frames[0], (10, 10, 20, 30), score=0.5), 1)
    assert whole == pytest.approx(100)
    assert quality_of(seen(frames[0], (0, 10, 10, 30), score=0.5), 1) == pytest.approx(25)
    assert quality_of(seen(frames[0], (310, 10, 320, 30), score=0.5), 1) == pytest.approx(25)
