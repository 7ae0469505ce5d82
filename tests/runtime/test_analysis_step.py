"""The analysis of a batch in one compiled call, and in parts: the same tracks, times, counts and published boxes."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from streamd.analysis.rules.settings import ZoneSettings
from streamd.analysis.tracking import Tracked
from streamd.analysis.tracking.bytetrack import ByteTrack, ByteTrackSettings
from streamd.analysis.tracking.native import Library
from streamd.analysis.tracking.observation import TrackedBatch
from streamd.flow.glimpse import NO_PICTURE
from streamd.flow.stream import Result, StreamOutput
from streamd.heads import DetectSettings
from streamd.runtime.analytics import Analytics
from streamd.sources.av import AvStreamSettings
from streamd.telemetry.analytics import AnalyticsMetrics
from streamd.telemetry.metrics import Metrics
from streamd.testing.scenes import wild
from streamd.types import Box, Boxes, Details, FoundBatch, Frame, ModelInfo, PartOfBlock
from tests.compiler import tracking_library

MODEL = ModelInfo("m", "0" * 64, ("person", "car", "dog"))
YARD = ZoneSettings(name="yard", points=((0.1, 0.1), (0.9, 0.1), (0.9, 0.9), (0.1, 0.9)))
STREAMS = ("camera", "film", "zones")
S = 10**9


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return tracking_library(tmp_path_factory.mktemp("native"))


class Side:
    """One way to do it: three streams, one of them a file, one with rules."""

    def __init__(self, compiled: Library | None, tracking: ByteTrackSettings) -> None:
        registry, metrics = CollectorRegistry(), Metrics(CollectorRegistry())
        self.events: list[tuple[str, str | None]] = []
        self.renamed = {0: 0}
        """What the other side calls a track."""
        self.analytics = Analytics(
            tracking, DetectSettings(class_conf={"car": 0.5}), AnalyticsMetrics(registry),
            lambda event, _: self.events.append((event.type, event.rule)), boot_id="t",
        )  # fmt: skip
        self.step = self.analytics.step(MODEL)
        self.step._tracker = ByteTrack(tracking, compiled)
        self.outputs = {}
        for name in STREAMS:
            url = "film.mp4" if name == "film" else f"rtsp://{name}"
            self.analytics.add(AvStreamSettings(id=name, url=url, zones=(YARD,) if name == "zones" else ()))
            self.outputs[name] = StreamOutput(name, metrics, MODEL, lambda _: None)

    def __call__(self, shown: list[tuple[Frame, Any]], joined: bool) -> list[Result]:
        results = [Result(self.outputs[frame.stream], frame, Boxes(*boxes)) for frame, boxes in shown]
        found = None
        if joined:
            found = FoundBatch.of(*zip(*[boxes for _, boxes in shown], strict=True))
        self.step.step(results, found)
        return results


def same(one: Side, other: Side, shown: list[tuple[Frame, Any]], joined: bool) -> list[Result]:
    """Holds both ways to the same; the results of the second."""
    both = one(shown, joined), other(shown, joined)
    for a, b in zip(*both, strict=True):
        for field in ("xyxy", "score", "class_id"):
            assert getattr(a.boxes, field).tolist() == getattr(b.boxes, field).tolist(), field
            assert getattr(a.boxes, field).dtype == getattr(b.boxes, field).dtype
        assert a.boxes.classes == b.boxes.classes == b.boxes.class_id.tolist()
        assert a.boxes.tracks is not None
        assert b.boxes.tracks is not None
        # NumPy gives ids to what it has seen in the whole batch first: they differ by their order among streams.
        pairs = list(zip(a.boxes.tracks.number.tolist(), b.boxes.tracks.number.tolist(), strict=True))
        assert [one.renamed.setdefault(number, of) for number, of in pairs] == [of for _, of in pairs]
        assert [other.renamed.setdefault(of, number) for number, of in pairs] == [number for number, _ in pairs]
        np.testing.assert_allclose(a.boxes.tracks.age_s, b.boxes.tracks.age_s, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(a.boxes.tracks.velocity, b.boxes.tracks.velocity, rtol=1e-6, atol=1e-6)
        if a.counts is not None and b.counts is not None:
            zones = a.counts["zones"]["yard"], b.counts["zones"]["yard"]
            assert zones[0]["begun"] == zones[1]["begun"]
            assert zones[0]["ended"] == zones[1]["ended"]
    for name in STREAMS:
        clocks = [side.analytics.streams[name].clock.facts for side in (one, other)]
        assert clocks[0] == clocks[1], name
        assert len(one.analytics.streams[name].tracks) == len(other.analytics.streams[name].tracks)
    assert one.events == other.events
    return both[1]


JUMPS = (0, 0, 0, 0, 1, -(10**7), 10**8, 700_000_000, 3 * S, 90 * S, -3600 * S, 1 << 62, 1 << 63, -(1 << 70))


@given(
    st.integers(0, 2**32 - 1),
    st.lists(
        st.tuples(
            st.lists(st.sampled_from(STREAMS), min_size=1, max_size=5), st.sampled_from(JUMPS),
            st.sampled_from([0, 0, 0, 1, 40_000_000, -20_000_000, 2 * S, 8 * S]),
            st.sampled_from(["", "", "", "", "size", "part", "begins", "no stamps"]), st.booleans(),
        ),
        min_size=4, max_size=14,
    ),
    st.sampled_from([3, 30, 1000]), st.sampled_from([2, 12, 40]), st.booleans(),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_one_call_gives_what_the_parts_give(
    compiled: Library, seed: int, batches: list[Any], most: int, objects: int, weak: bool
) -> None:
    tracking = ByteTrackSettings(max_tracks=most, publish_weak=weak)
    one, other = Side(None, tracking), Side(compiled, tracking)
    films = {name: wild(seed + k, 70, objects) for k, name in enumerate(STREAMS)}
    at, offset = dict.fromkeys(STREAMS, 10 * S), dict.fromkeys(STREAMS, 0)
    seq = dict.fromkeys(STREAMS, 0)
    for names, jump, late, event, joined in batches:
        shown = []
        for name in names:
            at[name] += 40_000_000 + late
            offset[name] += jump
            seq[name] += 1 + (late > S)
            stamp = None if event == "no stamps" else at[name] + offset[name]
            width = 1280 if event == "size" else 1920
            frame = Frame(
                name, NO_PICTURE, width, 1080, at[name], at[name], at[name], stamp,
                roi=Box(5, 6, 700, 500) if event == "part" else None, seq=seq[name], begins=event == "begins",
            )  # fmt: skip
            xyxy, score, class_id = films[name][seq[name] % 70]
            shown.append((frame, (xyxy, score, class_id % 3)))
        same(one, other, shown, joined)


def crowd(count: int, i: int = 0) -> Any:
    low = np.stack([np.arange(count) % 20 * 90.0 + i, np.arange(count) // 20 * 90.0], axis=1).astype(np.float32)
    return np.hstack((low, low + 60)), np.full(count, 0.9, np.float32), np.zeros(count, np.int32)


def batch(i: int, count: int) -> list[tuple[Frame, Any]]:
    at = 10 * S + i * 40_000_000
    return [(Frame(name, NO_PICTURE, 1920, 1080, at, at, at, at, seq=i), crowd(count, i)) for name in STREAMS]


def test_boxes_are_cut_when_somebody_asks(compiled: Library) -> None:
    side = Side(compiled, ByteTrackSettings())
    for i in range(3):
        results = side(batch(i, 50), joined=True)  # more than a stream has room for at first
    (block,) = {id(result.boxes.block): result.boxes.block for result in results}.values()  # type: ignore[attr-defined]
    assert block.room == 150
    assert [type(result.boxes) for result in results] == [PartOfBlock] * 3
    assert results[1].boxes.tracks is not None
    assert results[1].boxes.tracks.number.tolist() == list(range(51, 101))


@pytest.mark.parametrize("joined", [False, True])
def test_details_go_with_the_boxes_that_are_published(compiled: Library, joined: bool) -> None:
    side = Side(compiled, ByteTrackSettings())
    xyxy, _, class_id = crowd(3)
    frame = Frame("camera", NO_PICTURE, 1920, 1080, S, S, S, S, seq=0)
    points = np.arange(9, dtype=np.float32).reshape(3, 1, 3)
    boxes = Boxes(xyxy, np.array([0.9, 0.15, 0.8], np.float32), class_id)
    result = Result(side.outputs["camera"], frame, boxes, details=Details(points))
    if joined:
        side.step.step([result], FoundBatch.of([boxes.xyxy], [boxes.score], [boxes.class_id]))
        return
    side.step.step([result])
    assert result.details is not None
    assert result.details.keypoints is not None
    assert result.details.keypoints[:, 0, 0].tolist() == [0, 6]


def test_a_class_without_a_label_is_an_error_of_the_model(compiled: Library) -> None:
    side = Side(compiled, ByteTrackSettings())
    frame, (xyxy, score, class_id) = batch(0, 2)[0]
    with pytest.raises(IndexError, match="without a label"):
        side([(frame, (xyxy, score, class_id + 3))], joined=True)


def test_a_stream_on_which_the_tracker_fails_loses_its_tracks_only(
    compiled: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = Side(compiled, ByteTrackSettings(max_tracks=10))

    def broken(*_: Any) -> Any:
        raise ValueError("broken")

    monkeypatch.setattr(side.step._tracker, "_born", broken)
    (few, small), (many, _), _ = batch(0, 2)
    results = side([(few, small), (many, crowd(20))], joined=True)
    assert [len(result.boxes.score) for result in results] == [2, 20]
    assert results[0].boxes.tracks is not None
    assert results[1].boxes.tracks is not None
    assert (results[0].boxes.tracks.number > 0).all()
    assert not results[1].boxes.tracks.number.any()


def test_a_kind_with_a_step_of_its_own_is_asked(compiled: Library) -> None:
    class Own(ByteTrack):
        def step(self, observations: Any) -> TrackedBatch:
            return TrackedBatch.of([Tracked.nothing(each.class_id) for each in observations])

    side = Side(compiled, ByteTrackSettings())
    side.step._tracker = Own(ByteTrackSettings(), compiled)
    result = side(batch(0, 2)[:1], joined=True)[0]
    assert result.boxes.tracks is not None
    assert result.boxes.tracks.number.tolist() == [0, 0]


MOST_CALLS = 4
"""That tracking adds for each frame of a batch, of Python and C functions together."""


def test_tracking_adds_few_calls(compiled: Library) -> None:
    """Each takes some tenths of a microsecond of the interpreter lock: what is done frame by frame adds up."""

    def calls(frames: int) -> int:
        side = Side(compiled, ByteTrackSettings())
        at, count = 10 * S, 0
        for i in range(4):
            shown = [
                (Frame("camera", NO_PICTURE, 1920, 1080, t, t, t, t, seq=i * frames + k), crowd(20))
                for k in range(frames)
                for t in [at + (i * frames + k) * 40_000_000]
            ]
            results = [Result(side.outputs["camera"], frame, Boxes(*boxes)) for frame, boxes in shown]
            found = FoundBatch.of(*zip(*[boxes for _, boxes in shown], strict=True))

            def tally(_: Any, event: str, __: Any) -> None:
                nonlocal count
                count += event in ("call", "c_call")

            count = 0
            sys.setprofile(tally)
            side.step.step(results, found)
            sys.setprofile(None)
        return count

    few, many = calls(4), calls(20)
    assert many - few <= 16 * MOST_CALLS
