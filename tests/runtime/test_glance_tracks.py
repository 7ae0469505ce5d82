"""Tracks and rules of a stream whose frames are not all looked at."""

from __future__ import annotations

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from streamd.analysis.rules.settings import LineSettings
from streamd.analysis.tracking.bytetrack import ByteTrackSettings
from streamd.events.record import Event
from streamd.flow.glimpse import NO_PICTURE
from streamd.flow.stream import Result, StreamOutput
from streamd.heads import DetectSettings
from streamd.runtime.analytics import Analytics
from streamd.sources.av import AvStreamSettings
from streamd.telemetry.analytics import AnalyticsMetrics
from streamd.telemetry.metrics import Metrics
from streamd.types import Boxes, Frame, Look, ModelInfo, Why

RATE, SPEED = 25, 100.0


def walk(why: Why | None) -> tuple[float, list[Event]]:
    """Something walks for three seconds; every second frame is not looked at, for that reason (None: all are).

    Returns:
        Its last published speed in pixels per second, and the events.
    """
    events: list[Event] = []
    registry = CollectorRegistry()
    model = ModelInfo("m", "0" * 64, ("thing",))
    analytics = Analytics(
        ByteTrackSettings(), DetectSettings(), AnalyticsMetrics(registry), lambda event, _: events.append(event),
        boot_id="test",
    )  # fmt: skip
    step = analytics.step(model)
    line = LineSettings(name="line", points=((0.5, 0), (0.5, 1)))
    analytics.add(AvStreamSettings(id="yard", url="yard", lines=(line,)))
    output = StreamOutput("yard", Metrics(registry), model, lambda _: None)
    speed = 0.0
    for i in range(3 * RATE):
        at = 10**9 + i * 10**9 // RATE
        frame = Frame("yard", NO_PICTURE, 640, 480, pts_ns=None, captured_ns=at, decoded_ns=at, wall_ns=at, seq=i)
        if why is not None:
            frame.view = Look(i % 2 == 0, "motion" if i % 2 == 0 else why)
        left = 170 + SPEED * i / RATE
        box = np.array([[left, 100, left + 40, 200]], np.float32)
        result = Result(output, frame, Boxes(box, np.full(1, 0.9, np.float32), np.zeros(1, np.int32)))
        if not result.looked:
            result.boxes = Boxes(box[:0], result.boxes.score[:0], result.boxes.class_id[:0])
        step.step([result])
        if result.boxes.tracks is not None and len(result.boxes.tracks.velocity):
            speed = float(result.boxes.tracks.velocity[0, 0])
    return speed, events


@pytest.mark.parametrize("why", [None, "followed", "rate", "overload"])
def test_time_goes_on_for_what_moves(why: Why | None) -> None:
    speed, events = walk(why)
    assert speed == pytest.approx(SPEED, rel=0.05)
    assert [(event.rule, event.details["direction"]) for event in events] == [("line", "out")]
    always = walk(None)[1][0].seq
    assert always <= events[0].seq <= always + 1


def test_time_stands_still_where_nothing_moves() -> None:
    assert walk("still")[0] == pytest.approx(2 * SPEED, rel=0.1), "both steps were made in half of the time"
