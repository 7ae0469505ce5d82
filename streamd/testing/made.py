"""Frames, statuses and detections, made without a camera or a model."""

from __future__ import annotations

import time

import numpy as np

from streamd.sources import open_source
from streamd.sources.synthetic import SyntheticStreamSettings
from streamd.types import Boxes, Detections, Frame, ModelInfo, StageTimes, StreamStatus, Tracks

MODEL = ModelInfo("m", "ab" * 32, ("person", "car"))


def frames(stream: str, count: int, width: int = 64, height: int = 48) -> list[Frame]:
    """Real drawn frames, numbered from 0."""
    source = open_source(SyntheticStreamSettings(id=stream, width=width, height=height, fps=0, count=count))
    source.open()
    out = list(source.frames())
    for i, frame in enumerate(out):
        frame.epoch, frame.seq = 0, i
    return out


def detections(stream: str = "s", seq: int = 0, boxes: int = 1, tracks: Tracks | None = None) -> Detections:
    """A frame's detections, of 640 × 480 pixels, captured 5 ms ago."""
    now = time.monotonic_ns()
    return Detections(
        stream, 0, seq, seq * 40_000_000, time.time_ns(), 640, 480,
        StageTimes(*(now - 5_000_000 + i * 1_000_000 for i in range(6))), MODEL,
        Boxes(
            np.tile(np.array([[1.5, 2, 30, 40]], np.float32), (boxes, 1)),
            np.linspace(0.9, 0.5, boxes, dtype=np.float32), np.arange(boxes, dtype=np.int32) % 2, tracks,
        ),
    )  # fmt: skip


def status(stream: str = "s", state: str = "LIVE", reason: str = "") -> StreamStatus:
    """A stream's status, as of now."""
    return StreamStatus(stream, state, reason, "", 0, time.time_ns())  # type: ignore[arg-type]
