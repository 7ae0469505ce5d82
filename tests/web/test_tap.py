"""Small copies for whoever looks: only then, only so often, and never at the engine's cost."""

from __future__ import annotations

import threading
import time
import weakref
from dataclasses import replace
from typing import Any

import av
import cv2
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from streamd.engine import BatchSettings, ModelSettings
from streamd.engine.null import NullBackend, NullSettings
from streamd.errors import BackendError
from streamd.flow.batcher import Batcher
from streamd.flow.pipeline import Pipeline
from streamd.flow.ring import Bell, Ring
from streamd.flow.stream import StreamOutput
from streamd.sources.picture import picture_of
from streamd.telemetry.metrics import Metrics
from streamd.types import Box, Boxes, Detections, Found, Frame, ModelInfo, StageTimes
from streamd.web import tap as module
from streamd.web.tap import Tap

MODEL = ModelInfo("m", "0", ("thing",))
NOTHING: Any = None


def picture(width: int = 320, height: int = 180, stream: str = "a", **more: Any) -> Frame:
    """Left half dark, right half bright."""
    luma = np.full((height, width), 40, np.uint8)
    luma[:, width // 2 :] = 200
    image = np.vstack([luma, np.full((height // 2, width), 128, np.uint8)])
    native = picture_of(av.VideoFrame.from_ndarray(image, format="yuv420p"), **more)
    now = time.monotonic_ns()
    return Frame(stream, native, width, height, now, time.time_ns(), now)


def seen(frame: Frame, seq: int = 0) -> Detections:
    box = np.array([[1, 2, 30, 40]], np.float32)
    return Detections(
        frame.stream, 0, seq, None, 0, frame.width, frame.height, StageTimes(0, 1, 2, 3, 4, 5), MODEL,
        Boxes(box, np.array([0.9], np.float32), np.array([0], np.int32)),
    )  # fmt: skip


def decoded(jpeg: bytes) -> Any:
    return cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)


def test_nothing_is_kept_for_nobody() -> None:
    tap, frame = Tap(), picture()
    assert not tap.wanted
    tap.take(frame, seen(frame))
    with tap.watch(["b"], 5, 480) as viewer:
        tap.take(frame, seen(frame))
        assert viewer.wait(0.05) == []
    assert not tap.wanted


def test_a_viewer_gets_the_newest_picture_of_each_stream_once() -> None:
    tap = Tap()
    with tap.watch(["a", "b"], module.MAX_FPS, 160) as viewer:
        for stream, seq in (("a", 1), ("b", 2)):
            tap.take(picture(stream=stream), seen(picture(stream=stream), seq))
        first, second = viewer.wait(1) or []
        assert (first.detections.stream, second.detections.stream) == ("a", "b")
        image = decoded(first.jpeg())
        assert image.shape == (90, 160, 3)
        assert image[:, 20].mean() < 80
        assert image[:, 140].mean() > 160
        assert first.jpeg() is first.jpeg()
        assert viewer.wait(0.05) == []
        time.sleep(0.11)
        tap.take(picture(), seen(picture(), 3))
        assert [s.detections.seq for s in viewer.wait(1) or []] == [3]


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_pictures_are_upright_whole_and_never_enlarged(rotation: Any) -> None:
    tap, frame = Tap(), picture(width=200, height=100, rotation=rotation)
    if rotation % 180:
        frame = replace(frame, width=100, height=200)
    with tap.watch(["a"], 1, 1280) as viewer:
        tap.take(frame, seen(frame))
        image = decoded((viewer.wait(1) or [])[0].jpeg())
    assert image.shape[:2] == (frame.height, frame.width)
    dark = {0: (50, 10), 90: (10, 50), 180: (50, 190), 270: (190, 50)}
    assert image[dark[rotation]].mean() < 80


def test_the_rate_is_bounded_for_each_stream_and_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0]
    monkeypatch.setattr(time, "monotonic_ns", lambda: now[0])
    tap, taken = Tap(), []
    monkeypatch.setattr(tap, "_shrink", lambda frame, width: taken.append(now[0]))
    frame = picture()
    with tap.watch(["a"], 10, 480), tap.watch(["a"], 2, 480):
        for i in range(25 * 4):  # four seconds at 25 frames a second
            now[0] = i * 40_000_000
            tap.take(frame, seen(frame))
        assert 38 <= len(taken) <= 41
    with tap.watch([f"s{i}" for i in range(200)], 10, 480):
        assert sum(wish.fps for wish in tap.wanted.values()) == pytest.approx(module.TOTAL_FPS)
    with tap.watch(["a"], 1e9, 10**9):
        assert (tap.wanted["a"].fps, tap.wanted["a"].width) == (module.MAX_FPS, module.MAX_WIDTH)


def test_a_viewer_that_asks_for_thousands_leaves_the_others_their_share() -> None:
    tap = Tap()
    everything = [f"s{i}" for i in range(2500)]
    with (
        tap.watch(everything, 10, 480),
        tap.watch(["a", "b"], 10, 480),
        tap.watch(["c"], 5, 480),
        tap.watch([], 9, 480),
    ):
        # Of 60: 5 and 20 are less than an equal share, the rest is for who wants 25,000.
        assert (tap.wanted["a"].fps, tap.wanted["b"].fps, tap.wanted["c"].fps) == (10, 10, 5)
        assert tap.wanted["s0"].fps == pytest.approx(35 / 2500)
    with tap.watch(["a"] * 2500, 2, 480), tap.watch(["b"], 2, 480):
        assert tap.wanted["a"].fps == tap.wanted["b"].fps == 2


def test_a_picture_that_cannot_be_had_costs_only_itself() -> None:
    tap = Tap()
    elsewhere = replace(picture(), picture=replace(picture().picture, device=0))
    broken = replace(picture(stream="b"), picture=replace(picture().picture, native=NOTHING))
    with tap.watch(["a", "b"], 5, 480) as viewer:
        for frame in (elsewhere, broken):
            tap.take(frame, seen(frame))
        snapshots = viewer.wait(1) or []
        assert [(s.detections.stream, s.jpeg()) for s in snapshots] == [("a", b""), ("b", b"")]


class Surface:
    """A decoder's."""


def on_device(stream: str = "a", **more: Any) -> Frame:
    """As a hardware decoder gives it: nothing of it can be read on the host."""
    frame = picture(stream=stream, width=640, height=360)
    return replace(frame, picture=replace(frame.picture, device=0, native=NOTHING), **more)


def test_a_picture_on_a_gpu_is_asked_for_small_and_whole() -> None:
    tap, asked = Tap(), []

    def download(frame: Frame, width: int, height: int) -> Any:
        asked.append((frame.roi, width, height))
        return np.full((height, width, 3), 90, np.uint8)

    tap.downloads[0] = download
    with tap.watch(["a", "tall"], 10, 320) as viewer:
        tap.take(on_device(roi=Box(10, 10, 100, 100)), seen(on_device(), 7))
        [snapshot] = viewer.wait(5) or []
        assert snapshot.detections.seq == 7
        assert decoded(snapshot.jpeg()).shape == (180, 320, 3)
        tap.take(on_device("tall", width=360, height=640), seen(on_device("tall")))
        assert decoded((viewer.wait(5) or [])[0].jpeg()).shape == (320, 180, 3)
    assert asked == [(None, 320, 180), (None, 180, 320)]
    tap.close()


def test_a_busy_gpu_holds_up_neither_the_stage_nor_more_than_a_few_frames() -> None:
    tap, begun, go = Tap(), threading.Event(), threading.Event()

    def download(frame: Frame, width: int, height: int) -> Any:
        begun.set()
        assert go.wait(10)
        return np.zeros((height, width, 3), np.uint8)

    tap.downloads[0] = download
    names = [f"s{i}" for i in range(8)]
    with tap.watch(names, 10, 320) as viewer:
        frames = [on_device(name) for name in names]
        surfaces: list[Any] = [Surface() for _ in names]
        for frame, surface in zip(frames, surfaces, strict=True):
            frame.picture = replace(frame.picture, native=surface)
        kept = [weakref.ref(surface) for surface in surfaces]
        started = time.monotonic()
        tap.take(frames[0], seen(frames[0]))
        assert begun.wait(5)
        for frame in frames[1:]:
            tap.take(frame, seen(frame))
        assert time.monotonic() - started < 2
        frames.clear()
        surfaces.clear()
        del frame, surface
        assert sum(each() is not None for each in kept) == 3  # one under way, two that wait
        go.set()
        found: set[str] = set()
        while len(found) < 3:
            found |= {snapshot.stream for snapshot in viewer.wait(5) or []}
        assert found == {"s0", "s1", "s2"}
    tap.close()
    assert "page-pictures" not in {thread.name for thread in threading.enumerate()}


def test_a_device_that_fails_costs_the_picture_and_close_waits_for_what_is_under_way() -> None:
    tap, begun, ended = Tap(), threading.Event(), threading.Event()

    def download(frame: Frame, width: int, height: int) -> Any:
        begun.set()
        time.sleep(0.2)
        ended.set()
        raise BackendError("the device failed")

    tap.downloads[0] = download
    with tap.watch(["a"], 10, 320) as viewer:
        tap.take(on_device(), seen(on_device()))
        assert [s.jpeg() for s in viewer.wait(5) or []] == [b""]
        time.sleep(0.11)
        begun.clear()
        ended.clear()
        tap.take(on_device(), seen(on_device()))
        assert begun.wait(5)
        tap.close()
        assert ended.is_set()


def test_close_ends_who_waits() -> None:
    tap, answers = Tap(), []

    def look() -> None:
        with tap.watch(["a"], 5, 480) as viewer:
            answers.append(viewer.wait(30))

    thread = threading.Thread(target=look)
    thread.start()
    while not tap.wanted:
        time.sleep(0.01)
    tap.close()
    thread.join(5)
    assert answers == [None]


def test_the_pipeline_asks_the_tap_for_wanted_streams_only() -> None:
    class Counting:
        def __init__(self) -> None:
            self.wanted = {"b": 1}
            self.taken: list[tuple[str, str, int]] = []

        def take(self, frame: Frame, detections: Detections) -> None:
            self.taken.append((frame.stream, detections.stream, detections.seq))

    tap, bell = Counting(), Bell()
    backend = NullBackend(NullSettings(latency_ms=0), ModelSettings(path="none"), batch=BatchSettings())
    backend.start()
    batcher = Batcher(8, 0, bell)
    rings: dict[str, Ring[Frame]] = {name: Ring(8, "block", bell=bell) for name in "ab"}
    for name, ring in rings.items():
        batcher.add(name, ring)
        for seq in range(4):
            ring.put(replace(picture(stream=name), seq=seq))
        ring.close()
    batcher.seal()
    published: list[Detections] = []

    class Decode:
        def batch(self, outputs: Any, boxes: Any) -> list[Found]:
            rows = outputs[0][: len(boxes)]
            return [Found(row[:, :4], row[:, 4], row[:, 5].astype(np.int32), {}) for row in rows]

    metrics = Metrics(CollectorRegistry())
    pipeline = Pipeline(backend, batcher, Decode(), MODEL, metrics)
    for name in "ab":
        pipeline.add(StreamOutput(name, metrics, MODEL, published.append, tap))
    pipeline.start()
    assert pipeline.join(10)
    assert len(published) == 8
    assert tap.taken == [("b", "b", seq) for seq in range(4)]
