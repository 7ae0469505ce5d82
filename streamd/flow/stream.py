"""The state of one stream after inference: its counters, latencies, analysis, and who receives its frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from streamd.telemetry.metrics import Metrics
from streamd.types import Attribute, Details, Detections, Float32Array, Frame, Int32Array, ModelInfo, Tracks

log = structlog.get_logger(__name__)


class Tap(Protocol):
    """Looks at frames with their detections just before they are released."""

    @property
    def wanted(self) -> Mapping[str, object]:
        """By stream; empty while there is no viewer."""
        ...

    def take(self, frame: Frame, detections: Detections) -> None:
        """Must be fast, keep no picture for longer than it takes to copy it, and raise nothing."""
        ...


class StreamOutput:
    """Moves with its stream from one model instance to another. Used by the postprocess thread of the current one.

    Args:
        name: the stream's id.
        metrics: counters and times.
        model: the model that provides the labels.
        publish: receives each frame's detections, in capture order; must not block.
        taps: each receives published frames while it wants this stream's.
    """

    __slots__ = ("_counters", "_latency", "_publish", "_seen", "_taps", "name")

    def __init__(
        self,
        name: str,
        metrics: Metrics,
        model: ModelInfo,
        publish: Callable[[Detections], None],
        *taps: Tap | None,
    ) -> None:
        self.name = name
        self._counters = metrics.stream(name)
        self._latency = metrics.capture_to_publish.tally(name)
        self._seen = metrics.detections.of(name, model.labels)
        self._publish = publish
        self._taps = tuple(tap for tap in taps if tap is not None)

    def reject(self, reasons: Mapping[str, int]) -> None:
        """Counts invalid boxes of one frame that were left out, by reason; logs each reason once."""
        if new := {reason: n for reason, n in reasons.items() if reason not in self._counters.invalid_boxes}:
            log.warning("the model outputs invalid boxes, which are left out", stream=self.name, **new)
        self._counters.reject(reasons)

    def publish(self, frame: Frame, detections: Detections) -> None:
        """Publishes one frame's detections and counts them."""
        self._publish(detections)
        counters, times, seen = self._counters, detections.times, self._seen
        counters.published += 1
        seconds = (times.postprocessed - times.captured) / 1e9
        self._latency.observe(seconds)
        if counters.objective_s is not None and seconds > counters.objective_s:
            counters.late += 1
        for class_id in detections.class_id.tolist():
            seen[class_id] += 1
        for tap in self._taps:
            if self.name in tap.wanted:
                tap.take(frame, detections)


@dataclass(slots=True)
class Result:
    """One frame and its boxes on the way from the network to publication."""

    output: StreamOutput
    frame: Frame
    xyxy: Float32Array
    """(N, 4) in upright source pixels."""
    score: Float32Array
    """(N,) descending."""
    class_id: Int32Array
    """(N,)"""
    tracks: Tracks | None = None
    """The track of each box; None without tracking."""
    counts: Mapping[str, Any] | None = None
    """See `Detections.counts`."""
    details: Details | None = None
    """See `Detections.details`."""
    attributes: Sequence[tuple[Attribute, ...]] | None = None
    """See `Detections.attributes`."""


class Analysis(Protocol):
    """A step between inference and publication: trackers, rules.

    Called by one thread at a time for each stream, in capture order, once for each batch: with the frames of all its
    streams, so that one pass over arrays can process them together.
    """

    def step(self, batch: Sequence[Result]) -> None:
        """Changes the results in place. The slot is already free, so a slow analysis does not delay inference.

        The implementation must handle a stream whose analysis fails: any exception ends the pipeline.
        """
        ...
