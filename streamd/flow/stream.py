"""The state of one stream after inference: its counters, latencies, analysis, and who receives its frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from streamd.telemetry.metrics import Metrics
from streamd.types import (
    Attribute,
    Details,
    Detections,
    Float32Array,
    FoundBatch,
    Frame,
    FrameBoxes,
    Glanced,
    Look,
    ModelInfo,
    Tracks,
)

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


class Learner(Protocol):
    """Told what the network found in the frames of a stream whose frames are not all looked at."""

    def answer(self, look: Look, boxes: Float32Array, tracks: Tracks | None) -> None:
        """See `analysis.glance.gate.Gate.answer`."""
        ...


class StreamOutput:
    """Moves with its stream from one model instance to another. Used by the postprocess thread of the current one.

    Args:
        name: the stream's id.
        metrics: counters and times.
        model: the model that provides the labels.
        publish: receives each frame's detections, in capture order; must not block.
        taps: each receives published frames while it wants this stream's.
        publish_glance: receives each frame that was not looked at, in its turn; must not block.
    """

    __slots__ = (
        "_counters", "_glance", "_latency", "_looked", "_publish", "_seen", "_since", "_taps", "learner", "name",
        "unlooked",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        metrics: Metrics,
        model: ModelInfo,
        publish: Callable[[Detections], None],
        *taps: Tap | None,
        publish_glance: Callable[[Glanced], None] = lambda _: None,
    ) -> None:
        self.name = name
        self._counters = metrics.stream(name)
        self._latency = metrics.capture_to_publish.tally(name)
        self._seen = metrics.detections.of(name, model.labels)
        self._publish = publish
        self._taps = tuple(tap for tap in taps if tap is not None)
        self._glance = publish_glance
        self.learner: Learner | None = None
        self.unlooked = 0
        """See `Detections.unlooked`."""
        self._since = 0
        """Those since the last frame that was looked at, and that frame's number and Unix time."""
        self._looked: tuple[int | None, int | None] = (None, None)

    def reject(self, reasons: Mapping[str, int]) -> None:
        """Counts invalid boxes of one frame that were left out, by reason; logs each reason once."""
        if new := {reason: n for reason, n in reasons.items() if reason not in self._counters.invalid_boxes}:
            log.warning("the model outputs invalid boxes, which are left out", stream=self.name, **new)
        self._counters.reject(reasons)

    def publish(self, frame: Frame, detections: Detections) -> None:
        """Publishes one frame's detections and counts them."""
        if (view := frame.view) is not None:
            self._looked, self._since = (frame.seq, frame.wall_ns), 0
            self._counters.look(view.why)
            if self.learner is not None:
                self.learner.answer(view, detections.xyxy, detections.tracks)
        self._publish(detections)
        counters, times, seen = self._counters, detections.times, self._seen
        counters.published += 1
        seconds = (times.postprocessed - times.captured) / 1e9
        self._latency.observe(seconds)
        if counters.objective_s is not None and seconds > counters.objective_s:
            counters.late += 1
        for class_id in detections.boxes.classes:
            seen[class_id] += 1
        for tap in self._taps:
            if self.name in tap.wanted:
                tap.take(frame, detections)

    def pass_over(self, frame: Frame, counts: Mapping[str, Any] | None) -> None:
        """Publishes a frame that the network did not look at, and counts it.

        Args:
            frame: the frame; its picture has been released.
            counts: see `Glanced.counts`.
        """
        view = frame.view
        assert view is not None
        self.unlooked += 1
        self._since += 1
        self._glance(
            Glanced(
                frame.stream, frame.epoch, frame.seq, frame.pts_ns, frame.wall_ns, frame.width, frame.height,
                frame.clock, view, *self._looked, self._since, counts,
            )
        )  # fmt: skip
        self._counters.published += 1
        self._counters.pass_over(view.why)


@dataclass(slots=True)
class Result:
    """One frame and its boxes on the way from the network to publication; of a stream whose frames are not all looked
    at, also those that were not (`looked`)."""

    output: StreamOutput
    frame: Frame
    boxes: FrameBoxes
    counts: Mapping[str, Any] | None = None
    """See `Detections.counts`."""
    details: Details | None = None
    """See `Detections.details`."""
    attributes: Sequence[tuple[Attribute, ...]] | None = None
    """See `Detections.attributes`."""

    @property
    def looked(self) -> bool:
        """Whether the network has looked at the frame; if not, there are no boxes, which says nothing."""
        view = self.frame.view
        return view is None or view.wanted


class Analysis(Protocol):
    """A step between inference and publication: trackers, rules.

    Called by one thread at a time for each stream, in capture order, once for each batch: with the frames of all its
    streams, so that one pass over arrays can process them together.
    """

    def step(self, batch: Sequence[Result], found: FoundBatch | None = None) -> None:
        """Changes the results in place. The slot is already free, so a slow analysis does not delay inference.

        Args:
            batch: the frames.
            found: the boxes of all of them, if they are in one block and the network has looked at all; they do not
                have them themselves then.

        The implementation must handle a stream whose analysis fails: any exception ends the pipeline.
        """
        ...
