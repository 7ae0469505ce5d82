"""The analysis of one model instance's batches: tracks, rules, and which boxes are published."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import structlog

from streamd.analysis.rules import RuleEvent
from streamd.analysis.rules.engine import RuleEngine
from streamd.analysis.tracking import Observation, StreamTracks, Tracked, open_tracker
from streamd.analysis.tracking.batch import Tracker, failed
from streamd.analysis.tracking.clock import NO_PTS
from streamd.analysis.tracking.native import NativeStep
from streamd.analysis.tracking.observation import BoolArray, EndedTrack, FrameFacts, ObservationBatch, TrackedBatch
from streamd.analysis.tracking.selection import Selection, library
from streamd.flow.stream import Result
from streamd.heads import DetectSettings
from streamd.heads.postprocess import class_numbers
from streamd.runtime.stream_analysis import StreamAnalysis
from streamd.settings.plugins import maker
from streamd.types import Boxes, Found, FoundBatch, ModelInfo, PartOfBlock, Tracks

if TYPE_CHECKING:
    from streamd.runtime.analytics import Analytics

log = structlog.get_logger(__name__)

Kept = Callable[[], BoolArray]


class AnalysisStep:
    """See `streamd.flow.stream.Analysis`. For one thread.

    Args:
        analytics: the state of the streams.
        model: the model that provides the labels.
        detect: thresholds of published boxes.
    """

    def __init__(self, analytics: Analytics, model: ModelInfo, detect: DetectSettings) -> None:
        self._analytics = analytics
        self._tracker = open_tracker(analytics.tracking)
        self._guarded = type(self._tracker).step is Tracker.step
        """Whether its step raises nothing, and gives a result for each frame."""
        self._metrics = analytics._metrics
        floor = np.full(len(model.labels), detect.conf, np.float32)
        if detect.class_conf:
            numbers = class_numbers(list(detect.class_conf), model.labels, "model.detect.class_conf")
            floor[numbers] = list(detect.class_conf.values())
        if detect.classes is not None:
            wanted = class_numbers(detect.classes, model.labels, "model.detect.classes")
            unwanted = np.ones(len(model.labels), np.bool_)
            unwanted[wanted] = False
            floor[unwanted] = np.inf
        self._selection = Selection(floor, analytics.tracking.publish_weak, library())

    def step(self, batch: Sequence[Result], found: FoundBatch | None = None) -> None:
        """See `Analysis.step`."""
        own, looked = found is None, batch
        if found is None:
            looked = [result for result in batch if result.looked]
            parts = [result.boxes for result in looked]
            found = FoundBatch.of([p.xyxy for p in parts], [p.score for p in parts], [p.class_id for p in parts])
        kept, native = None, self._tracker.whole
        if native is not None and len(looked) == len(batch):
            kept = self._together(native, batch, found)
        if kept is None:
            kept = self._in_parts(batch, looked, found)
        if own and any(result.details is not None for result in looked):
            which = kept()
            for i, result in enumerate(looked):
                if result.details is not None:
                    result.details = result.details.take(which[found.bounds[i] : found.bounds[i + 1]])
        said = self._analytics.said
        if said is not None:
            for result in looked:
                assert result.boxes.tracks is not None
                result.attributes = said.of(result.output.name, result.boxes.tracks.number.tolist())

    def _together(self, native: NativeStep, batch: Sequence[Result], found: FoundBatch) -> Kept | None:
        """Frames that were all looked at, in one compiled call; see `_in_parts`. None where a number of them is too
        large for it."""
        streams, now_s, judged = self._analytics.streams, 0.0, False
        facts: list[int] = []
        for result in batch:
            frame = result.frame
            each, pts, roi = streams[frame.stream], frame.pts_ns, frame.roi
            facts += (
                each.address, frame.captured_ns, frame.seq, frame.begins, frame.width, frame.height,
                NO_PTS if pts is None else pts, 0 if roi is None else native.part(roi),
            )  # fmt: skip
            if each.rules is not None:
                judged, now_s = True, now_s or time.monotonic()
                each.last_frame_s = now_s

        def tracks(i: int) -> StreamTracks:
            return streams[batch[i].frame.stream].tracks

        def left(i: int, time_ns: int, missed: int) -> Tracked:
            frame, boxes = batch[i].frame, found[i]
            return self._tracker.alone(
                Observation(
                    tracks(i), time_ns, boxes.xyxy, boxes.score, boxes.class_id, frame.width, frame.height, frame.roi,
                    missed, "loop" if frame.begins else None,
                )
            )  # fmt: skip

        try:
            tracked, chosen, ends = native.publish(facts, tracks, found, self._selection.address, left, ended=judged)
        except struct.error:
            return None
        if tracked is not None:
            for i, error in tracked.errors.items():
                self._failed(streams[batch[i].frame.stream], "tracker", error)
            if judged:
                self._apply_rules(batch, native.times(len(batch)), found, tracked)
            if chosen is None:
                return self._publishable(batch, found, tracked)
        assert chosen is not None
        begin = 0
        for result, end in zip(batch, ends, strict=True):
            result.boxes = PartOfBlock(chosen, begin, end)
            begin = end
        return chosen.kept

    def _in_parts(self, batch: Sequence[Result], looked: Sequence[Result], found: FoundBatch) -> Kept:
        """Clocks, tracks, rules, and which boxes are published.

        Args:
            batch: the frames.
            looked: those of them that the network has looked at.
            found: the boxes of these.

        Returns:
            Tells, by given box, (N,), which are published.
        """
        streams, now_s = self._analytics.streams, time.monotonic()
        frames: list[FrameFacts] = []
        times, plain = [], True
        for result in batch:
            each = streams[result.output.name]
            if result.looked:
                frames.append(each.facts(result.frame, now_s))
            else:
                each.pass_over(result.frame, now_s)
            times.append(each.clock.now_ns)
            plain = plain and each.rules is None
        tracked = self._track(ObservationBatch(frames, found))
        for i, error in tracked.errors.items():
            self._failed(streams[looked[i].output.name], "tracker", error)
        if not plain:
            self._apply_rules(batch, times, found, tracked)
        return self._publishable(looked, found, tracked)

    def _track(self, observations: ObservationBatch) -> TrackedBatch:
        """One step. Where a kind with a step of its own fails, the batch's streams lose their tracks, but no frame."""
        if self._guarded:
            return TrackedBatch.of(self._tracker.step(observations))
        try:
            tracked = list(self._tracker.step(observations))
            if problem := unfit(tracked, [len(each.score) for each in observations], len(self._selection.floor)):
                raise ValueError(f"{type(self._tracker).__qualname__}.step returned {problem}")
            return TrackedBatch.of(tracked)
        except Exception as error:  # noqa: BLE001 - as in `Tracker.step`
            return TrackedBatch.of([failed(each, error) for each in observations])

    def _apply_rules(
        self, batch: Sequence[Result], times: Sequence[int], seen: FoundBatch, tracked: TrackedBatch
    ) -> None:
        """Judges the frames of streams with rules: (B,) the frames, their times; what was seen in those looked at."""
        at = 0
        for result, now_ns in zip(batch, times, strict=True):
            each = self._analytics.streams[result.output.name]
            if not result.looked:
                if each.rules is not None:
                    self._pass_over(each, result, now_ns)
                continue
            if each.rules is not None:
                self._judge(each, seen[at], tracked[at], result, now_ns)
            at += 1

    def _judge(self, each: StreamAnalysis, seen: Found, tracked: Tracked, result: Result, now_ns: int) -> None:
        def judged(rules: RuleEngine) -> list[RuleEvent]:
            wanted = self._selection.floor[tracked.class_id] < np.inf
            return each.judge(seen, tracked, wanted, result.frame, now_ns)

        self._apply(each, result, now_ns, judged)

    def _pass_over(self, each: StreamAnalysis, result: Result, now_ns: int) -> None:
        wall_ns = each.last_wall_ns = result.frame.wall_ns
        self._apply(each, result, now_ns, lambda rules: rules.pass_over(now_ns, wall_ns))

    def _apply(
        self, each: StreamAnalysis, result: Result, now_ns: int, rule: Callable[[RuleEngine], list[RuleEvent]]
    ) -> None:
        try:
            with each.lock:
                assert each.rules is not None
                events = rule(each.rules)
                result.counts = each.rules.counters()
        except Exception as error:  # noqa: BLE001 - a rule that fails costs no frame
            self._failed(each, "rules", error)
            with each.lock:
                assert each.rules is not None
                events = each.rules.reset("failed")
        if events:
            self._analytics.tell(each, events, result.frame.captured_ns, now_ns)
        if each.rules.silent:
            self._analytics.keep_counts(each)

    def _failed(self, each: StreamAnalysis, what: str, error: Exception) -> None:
        self._metrics.failed(each.stream)
        log.error(
            "analysis failed; its state is reset", stream=each.stream, what=what, error=str(error), exc_info=error,
            package=maker(self._tracker) if what == "tracker" else None,
        )  # fmt: skip

    def _publishable(self, results: Sequence[Result], found: FoundBatch, tracked: TrackedBatch) -> Kept:
        """Sets the boxes to publish, with their tracks.

        Args:
            results: of frames with boxes.
            found: their boxes.
            tracked: what is known of these.

        Returns:
            Tells, by given box, (N,), which these are.
        """
        ends, xyxy, score, class_id, number, age_s, velocity, kept = self._selection(found, tracked)
        begin = 0
        for result, end in zip(results, ends, strict=True):
            of = slice(begin, end)
            result.boxes = Boxes(xyxy[of], score[of], class_id[of], Tracks(number[of], age_s[of], velocity[of]))
            begin = end
        return lambda: kept


def unfit(tracked: Sequence[Tracked], boxes: Sequence[int], classes: int) -> str:
    """What is wrong with what a tracker of another package says of a batch; empty if nothing is.

    Args:
        tracked: of each frame.
        boxes: how many boxes each has.
        classes: of the model.
    """
    if len(tracked) != len(boxes) or not all(isinstance(each, Tracked) for each in tracked):
        return f"{tracked!r:.80} for {len(boxes)} frames; expected a Tracked for each"
    for each, n in zip(tracked, boxes, strict=True):
        for name, kinds, shape in (("id", "iu", (n,)), ("age_s", "f", (n,)), ("velocity", "f", (n, 2)),
                                   ("class_id", "iu", (n,))):  # fmt: skip
            array = getattr(each, name)
            if not isinstance(array, np.ndarray):
                return f"a Tracked whose {name} is a {type(array).__qualname__}; expected a NumPy array"
            if array.dtype.kind not in kinds or array.shape != shape:
                expected = f"{'integers' if 'i' in kinds else 'floats'} {shape}"
                return f"a Tracked whose {name} is {array.dtype} {array.shape}; expected {expected}"
        if n and not (each.id.min() >= 0 and 0 <= each.class_id.min() <= each.class_id.max() < classes):
            return (
                f"ids from {each.id.min()} and classes from {each.class_id.min()} to {each.class_id.max()}; "
                f"expected ids from 0 and classes from 0 to {classes - 1}"
            )
        if not all(isinstance(gone, EndedTrack) for gone in each.ended):
            return f"a Tracked whose ended is {each.ended!r:.80}; expected a tuple of EndedTrack"
    return ""
