"""The analysis of a process: when a stream is down, and what is handed over without an event."""

from __future__ import annotations

import time

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from streamd.analysis.rules.settings import ZoneSettings
from streamd.analysis.tracking.bytetrack import ByteTrackSettings
from streamd.errors import ConfigError
from streamd.events.record import Event, RuleStates
from streamd.flow.glimpse import NO_PICTURE
from streamd.flow.stream import Result, StreamOutput
from streamd.heads import DetectSettings
from streamd.runtime.analytics import AnalysisStep, Analytics
from streamd.sources.av import AvStreamSettings
from streamd.telemetry.analytics import AnalyticsMetrics
from streamd.telemetry.metrics import Metrics
from streamd.types import Frame, ModelInfo

MODEL = ModelInfo("m", "0" * 64, ("thing",))
YARD = ZoneSettings(name="yard", points=((0.1, 0.1), (0.9, 0.1), (0.9, 0.9), (0.1, 0.9)))


class Stream:
    """One stream, in the middle of which something stands from time to time."""

    def __init__(self, zone: ZoneSettings) -> None:
        self.events: list[Event] = []
        self.kept: list[RuleStates] = []
        registry = CollectorRegistry()
        self.analytics = Analytics(
            ByteTrackSettings(), DetectSettings(), AnalyticsMetrics(registry),
            lambda event, _: self.events.append(event), boot_id="test",
        )  # fmt: skip
        self.analytics.keep = self.kept.append
        self.step: AnalysisStep = self.analytics.step(MODEL)
        self.analytics.add(AvStreamSettings(id="a", url="rtsp://a", zones=(zone,)))
        self.output = StreamOutput("a", Metrics(registry), MODEL, lambda _: None)
        self.seq = 0

    def frame(self, at_s: float, boxes: int = 1, left: float = 300) -> None:
        at = 10**9 + round(at_s * 1e9)
        frame = Frame("a", NO_PICTURE, 640, 480, pts_ns=None, captured_ns=at, decoded_ns=at, wall_ns=at, seq=self.seq)
        self.seq += 1
        box = np.array([[left, 100, left + 40, 200]], np.float32)[:boxes]
        score, class_id = np.full(1, 0.9, np.float32)[:boxes], np.zeros(1, np.int32)[:boxes]
        self.step.step([Result(self.output, frame, box, score, class_id)])

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
        stream.frame(k / 10, boxes=k >= 20)
    assert [event.kind for event in stream.events] == ["begin"]
    assert stream.kept == []
    for k in range(100, 200):
        stream.frame(k / 10, boxes=k >= 150)
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
