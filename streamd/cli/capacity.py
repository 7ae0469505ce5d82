"""How many streams this machine can analyse: measured for the demo."""

from __future__ import annotations

import time
from dataclasses import dataclass

from streamd.cli.detect import Run
from streamd.engine import ModelSettings
from streamd.heads import DetectSettings

WARM_UP = 8
"""Frames before the measurement: the first ones take longer."""
MEASURE_S = 1.5
SHARE = 0.6
"""Of what was measured: the rest is for the page, the browser beside it, and whatever else begins to run."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What this machine can do, and what is asked of it."""

    measured_fps: float
    """Frames a second from a file to its detections, as fast as it goes."""
    streams: int
    max_fps: float | None
    """Frame rate to which each stream is limited; None if it needs no limit."""

    @property
    def told(self) -> str:
        """A sentence without its end, for people."""
        each = "" if self.max_fps is None else f" at {self.max_fps:g} frames/s"
        shown = f"{self.streams} stream{'s' * (self.streams > 1)}{each}"
        return f"{self.measured_fps:.0f} frames/s measured, so {shown}"


def choose(measured_fps: float, fps: float, most: int) -> Capacity:
    """As many streams as the machine can analyse without being overloaded, at least one.

    Args:
        measured_fps: frames a second that it analysed.
        fps: frame rate of the streams.
        most: largest number of streams.
    """
    able = SHARE * measured_fps
    streams = max(1, min(most, int(able / fps)))
    return Capacity(measured_fps, streams, None if able >= streams * fps else float(max(1, int(able))))


def measure(video: str, model: ModelSettings, detect: DetectSettings, most: int) -> Capacity:
    """Analyses a video for a moment, as fast as it goes.

    Raises:
        StreamdError: the model or the video cannot be used.
    """
    job = Run([video], model, detect)
    began, frames, rate = 0.0, 0, 25.0
    try:
        for number, (_, _, _, fps) in enumerate(job.results_of()):
            now = time.monotonic()
            rate = fps or rate
            if number < WARM_UP:
                began = now
                continue
            frames = number + 1 - WARM_UP
            if now - began >= MEASURE_S:
                break
        took = time.monotonic() - began
    finally:
        job.close()
    if job.pipeline.error is not None:
        raise job.pipeline.error
    for error in job.errors:
        raise error
    return choose(frames / took, rate, most)
