"""The analysis of a process: when a stream is down, and what is handed over without an event."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from streamd.analysis.rules.settings import ZoneSettings
from streamd.analysis.tracking import TRACKERS
from streamd.analysis.tracking.bytetrack import ByteTrackSettings
from streamd.analysis.tracking.iou import IouSettings, IouTracker
from streamd.errors import ConfigError
from streamd.events.record import Event, RuleStates
from streamd.flow.glimpse import NO_PICTURE
from streamd.flow.stream import Result, StreamOutput
from streamd.heads import DetectSettings
from streamd.runtime.analysis_step import AnalysisStep
from streamd.runtime.analytics import Analytics
from streamd.sources.av import AvStreamSettings
from streamd.telemetry.analytics import AnalyticsMetrics
from streamd.telemetry.metrics import Metrics
from streamd.types import Boxes, FoundBatch, Frame, ModelInfo

MODEL = ModelInfo("m", "0" * 64, ("thing", "other"))
NO_BOXES, NO_CLASSES = np.empty((0, 4), np.float32), np.empty(0, np.int32)
YARD = ZoneSettings(name="yard", points=((0.1, 0.1), (0.9, 0.1), (0.9, 0.9), (0.1, 0.9)))


class Stream:
    """One stream, in the middle of which something stands from time to time."""

    def __init__(
        self, zone: ZoneSettings, detect: DetectSettings | None = None, tracking: ByteTrackSettings | None = None
    ) -> None:
        self.events: list[Event] = []
        self.kept: list[RuleStates] = []
        registry = CollectorRegistry()
        self.analytics = Analytics(
            tracking or ByteTrackSettings(), detect or DetectSettings(), AnalyticsMetrics(registry),
            lambda event, _: self.events.append(event), boot_id="test",
        )  # fmt: skip
        self.analytics.keep = self.kept.append
        self.step: AnalysisStep = self.analytics.step(MODEL)
        self.analytics.add(AvStreamSettings(id="a", url="rtsp://a", zones=(zone,)))
        self.output = StreamOutput("a", Metrics(registry), MODEL, lambda _: None)
        self.seq = 0

    def frame(self, at_s: float, boxes: int = 1, score: float = 0.9, class_id: int = 0) -> Result:
        at = 10**9 + round(at_s * 1e9)
        frame = Frame("a", NO_PICTURE, 640, 480, pts_ns=None, captured_ns=at, decoded_ns=at, wall_ns=at, seq=self.seq)
        self.seq += 1
        box = np.array([[300, 100, 340, 200]], np.float32)[:boxes]
        result = Result(
            self.output, frame, Boxes(box, np.full(boxes, score, np.float32), np.full(boxes, class_id, np.int32))
        )
        self.step.step([result])
        return result

    @property
    def stale(self) -> bool:
        rules = self.analytics.streams["a"].rules
        assert rules is not None
        return bool(rules.counters()["zones"]["yard"]["stale"])


@pytest.mark.parametrize(("apart", "up_s", "down_s"), [(0.1, 0.9, 1.1), (1.0, 1.5, 2.7), (4.0, 9.0, 11.0)])
def test_a_stream_is_down_without_frames_for_a_second_or_some_of_its_own(
    apart: float, up_s: float, down_s: float
) -> None:
    stream = Stream(YARD)
    for k in range(20):
        stream.frame(k * apart)
    now = time.monotonic()
    stream.analytics.tick(now + up_s)
    assert not stream.stale
    stream.analytics.tick(now + down_s)
    assert stream.stale


def test_what_cooldown_keeps_back_is_handed_over_at_once() -> None:
    stream = Stream(YARD.model_copy(update={"cooldown_s": 600.0}))
    for k in range(100):
        stream.frame(k / 10, boxes=int(k >= 20))
    assert [event.kind for event in stream.events] == ["begin"]
    assert stream.kept == []
    for k in range(100, 200):
        stream.frame(k / 10, boxes=int(k >= 150))
    assert [event.kind for event in stream.events] == ["begin", "end"]
    assert [told.rules[0]["begun"] for told in stream.kept] == [{"thing": 2}]
    assert stream.kept[0].seen_ns is None
    stream.analytics.close()
    left = stream.kept[-1]
    assert (left.rules[0]["begun"], left.rules[0]["ended"]) == ({"thing": 2}, {"thing": 2})
    assert left.seen_ns == 10**9 + 19_900_000_000
    assert left.memory


def test_a_class_that_the_model_does_not_have() -> None:
    stream = Stream(YARD)
    wrong = AvStreamSettings(id="b", url="rtsp://b", zones=(YARD.model_copy(update={"classes": ("cat", "thing")}),))
    with pytest.raises(ConfigError, match=r"^streams\[0\]\.zones\[0\]\.classes\[0\]: the model has no class cat"):
        stream.analytics.check([wrong])
    stream.analytics.check([AvStreamSettings(id="b", url="rtsp://b", zones=(YARD,))])


def published(stream: Stream, scores: list[float], classes: list[int] | None = None) -> list[tuple[int, int]]:
    """Of each frame, how many boxes are published, and the class of the last one (-1: none)."""
    out = []
    for k, score in enumerate(scores):
        result = stream.frame(k / 10, score=score, class_id=0 if classes is None else classes[k])
        assert result.boxes.tracks is not None
        assert len(result.boxes.tracks.number) == len(result.boxes.score) == len(result.boxes.xyxy)
        out.append((len(result.boxes.score), int(result.boxes.class_id[-1]) if len(result.boxes.class_id) else -1))
    return out


SCORES = [0.9, 0.9, 0.15, 0.15, 0.3, 0.9]


def test_weak_boxes_are_tracked_and_not_published() -> None:
    stream = Stream(YARD, DetectSettings(conf=0.25))
    assert stream.analytics.detect.conf == 0.1, "what the decoding has to leave"
    assert [n for n, _ in published(stream, SCORES)] == [1, 1, 0, 0, 1, 1]
    assert [event.kind for event in stream.events] == ["begin"], "the presence goes on in weak boxes"
    again = Stream(YARD, DetectSettings(conf=0.25), ByteTrackSettings(publish_weak=True))
    assert [n for n, _ in published(again, SCORES)] == [1] * 6
    nothing = Stream(YARD, DetectSettings(conf=0.25), ByteTrackSettings(publish_weak=True))
    assert [n for n, _ in published(nothing, [0.2] * 6)] == [0] * 6, "weak boxes of no track"


@pytest.mark.parametrize("weak", [False, True])
def test_thresholds_of_classes_apply_after_tracking(weak: bool) -> None:
    """To the class of the track: a single box that is taken for something else changes nothing."""
    tracking = ByteTrackSettings(publish_weak=weak)
    conf = DetectSettings(conf=0.25, class_conf={"other": 0.8})
    assert published(Stream(YARD, conf, tracking), [0.5] * 6, [0, 0, 0, 1, 0, 0])[2:] == [(1, 0)] * 4
    low = published(Stream(YARD, conf, tracking), [0.9, 0.9, 0.5, 0.9], [1, 1, 1, 1])
    assert low == [(1, 1), (1, 1), (int(weak), 1 if weak else -1), (1, 1)]


@pytest.mark.parametrize("weak", [False, True])
def test_unwanted_classes_are_tracked_and_neither_published_nor_counted(weak: bool) -> None:
    wanted = DetectSettings(classes=["thing"])
    assert published(Stream(YARD, wanted), [0.9] * 6, [0, 0, 0, 1, 0, 0]) == [(1, 0)] * 6
    other = Stream(YARD, wanted, ByteTrackSettings(publish_weak=weak))
    assert published(other, [0.9] * 6, [1] * 6) == [(0, -1)] * 6
    assert other.events == []


@pytest.mark.parametrize("kind", ["bytetrack", "iou"])
@pytest.mark.parametrize("joined", [True, False])
def test_frames_of_one_stream_in_one_batch_are_what_they_are_one_by_one(kind: str, joined: bool) -> None:
    """Their boxes come together in one block, or with each frame."""
    rng = np.random.default_rng(4)
    analytics, steps = [], []
    for _ in range(2):
        registry = CollectorRegistry()
        metrics = Metrics(registry)
        each = Analytics(
            TRACKERS.validate({"kind": kind}),
            DetectSettings(),
            AnalyticsMetrics(registry),
            lambda *_: None,
            boot_id="t",
        )
        steps.append(each.step(MODEL))
        for name in ("a", "b"):
            each.add(AvStreamSettings(id=name, url=f"rtsp://{name}", zones=(YARD,)))
        analytics.append((each, {n: StreamOutput(n, metrics, MODEL, lambda _: None) for n in ("a", "b")}))
    for i in range(12):
        shown = []
        for j, name in enumerate("aab" if i % 2 else "ba"):
            n = int(rng.integers(0, 6))
            low = rng.uniform(0, 400, (n, 2)).astype(np.float32)
            score = np.sort(rng.uniform(0.1, 1, n).astype(np.float32))[::-1].copy()
            at = 10**9 + (3 * i + j) * 40_000_000
            frame = Frame(name, NO_PICTURE, 640, 480, at, at, at, at, seq=3 * i + j)
            shown.append((frame, np.hstack((low, low + 60)), score, rng.integers(0, 2, n).astype(np.int32)))
        results = [[Result(outputs[f.stream], f, Boxes(*boxes)) for f, *boxes in shown] for _, outputs in analytics]
        for result in results[0]:
            steps[0].step([result])
        if joined:
            found = FoundBatch.of(*zip(*[boxes for _, *boxes in shown], strict=True))
            results[1] = [Result(r.output, r.frame, Boxes(NO_BOXES, NO_BOXES[:, 0], NO_CLASSES)) for r in results[1]]
            steps[1].step(results[1], found)
        else:
            steps[1].step(results[1])
        for one, other in zip(*results, strict=True):
            assert one.boxes.tracks is not None
            assert other.boxes.tracks is not None
            for field in ("xyxy", "score", "class_id"):
                a, b = getattr(one.boxes, field), getattr(other.boxes, field)
                np.testing.assert_array_equal(a, b)
            for a, b in zip(one.boxes.tracks[1:], other.boxes.tracks[1:], strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-9)
            assert (one.boxes.tracks.number > 0).tolist() == (other.boxes.tracks.number > 0).tolist()
            assert one.counts is not None
            assert other.counts is not None
            for count in ("begun", "ended", "labels"):
                assert one.counts["zones"]["yard"][count] == other.counts["zones"]["yard"][count]


class Own(IouTracker):
    """Has a step of its own, which changes what is said of every frame."""

    changes: dict[str, Any] = {}  # noqa: RUF012

    def step(self, observations: Any) -> Any:
        return [replace(each, **self.changes) for each in super().step(observations)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"id": np.array([1, 2])}, r"a Tracked whose id is int64 \(2,\); expected integers \(1,\)"),
        ({"id": np.array([-1])}, "ids from -1 and classes from 0 to 0; expected ids from 0"),
        ({"id": np.array([0.5])}, r"a Tracked whose id is float64 \(1,\); expected integers"),
        ({"age_s": None}, "a Tracked whose age_s is a NoneType; expected a NumPy array"),
        ({"velocity": np.zeros(1)}, r"a Tracked whose velocity is float64 \(1,\); expected floats \(1, 2\)"),
        ({"class_id": np.array([2])}, "classes from 2 to 2; expected ids from 0 and classes from 0 to 1"),
        ({"class_id": np.array([-1])}, "classes from -1 to -1"),
        ({"ended": (7,)}, r"a Tracked whose ended is \(7,\); expected a tuple of EndedTrack"),
    ],
)
def test_what_a_step_of_another_package_returns_costs_no_frame(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], words: str
) -> None:
    stream = Stream(YARD)
    tracker = Own(IouSettings())
    stream.step._tracker, stream.step._guarded = tracker, False
    monkeypatch.setattr(tracker, "changes", changes)
    with capture_logs() as logs:
        result = stream.frame(0)
    assert len(result.boxes.score) == 1
    assert result.boxes.tracks is not None
    assert result.boxes.tracks.number.tolist() == ([0] if words else [1])
    failed = [each["error"] for each in logs if each["event"] == "analysis failed; its state is reset"]
    assert len(failed) == bool(words)
    assert not words or re.search(f"^Own.step returned .*{words}", failed[0]), failed
