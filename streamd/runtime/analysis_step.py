"""The analysis of one model instance's batches: tracks, rules, and which boxes are published."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import structlog

from streamd.analysis.rules import RuleEvent
from streamd.analysis.rules.engine import RuleEngine
from streamd.analysis.tracking import Observation, Tracked
from streamd.analysis.tracking.observation import BoolArray, FrameFacts, ObservationBatch, TrackedBatch
from streamd.analysis.tracking.selection import Selection, library
from streamd.flow.stream import Result
from streamd.heads import DetectSettings
from streamd.heads.postprocess import class_numbers
from streamd.runtime.stream_analysis import StreamAnalysis
from streamd.types import FoundBatch, ModelInfo, Tracks

if TYPE_CHECKING:
    from streamd.runtime.analytics import Analytics

log = structlog.get_logger(__name__)


class AnalysisStep:
    """See `streamd.flow.stream.Analysis`. For one thread.

    Args:
        analytics: the state of the streams.
        model: the model that provides the labels.
        detect: thresholds of published boxes.
    """

    def __init__(self, analytics: Analytics, model: ModelInfo, detect: DetectSettings) -> None:
        self._analytics = analytics
        self._tracker = analytics.tracking.open()
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
        streams, now_s = self._analytics.streams, time.monotonic()
        frames: list[FrameFacts] = []
        times, plain = [], True
        for result in batch:
            frame = result.frame
            each, view = streams[result.output.name], frame.view
            if view is None or view.wanted:
                frames.append(each.facts(frame, now_s))
            else:
                each.pass_over(frame, now_s)
            times.append(each.now_ns)
            plain = plain and each.rules is None
        looked = batch if len(frames) == len(batch) else [result for result in batch if result.looked]
        own = found is None
        if found is None:
            found = FoundBatch.of(
                [result.xyxy for result in looked], [result.score for result in looked],
                [result.class_id for result in looked],
            )  # fmt: skip
        seen = ObservationBatch(frames, found)
        tracked = TrackedBatch.of(self._tracker.step(seen))
        for i, error in tracked.errors.items():
            self._failed(streams[looked[i].output.name], "tracker", error)
        if not plain:
            self._apply_rules(batch, times, seen, tracked)
        kept = self._publishable(looked, found, tracked)
        if own:
            for i, result in enumerate(looked):
                if result.details is not None:
                    result.details = result.details.take(kept[found.bounds[i] : found.bounds[i + 1]])
        said = self._analytics.said
        if said is not None:
            for result in looked:
                assert result.tracks is not None
                result.attributes = said.of(result.output.name, result.tracks.number.tolist())

    def _apply_rules(
        self, batch: Sequence[Result], times: Sequence[int], seen: ObservationBatch, tracked: TrackedBatch
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

    def _judge(
        self, each: StreamAnalysis, observation: Observation, tracked: Tracked, result: Result, now_ns: int
    ) -> None:
        def judged(rules: RuleEngine) -> list[RuleEvent]:
            wanted = self._selection.floor[tracked.class_id] < np.inf
            return each.judge(observation, tracked, wanted, result.frame, now_ns)

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
            "analysis failed; its state is reset", stream=each.stream, what=what, error=str(error), exc_info=error
        )

    def _publishable(self, results: Sequence[Result], found: FoundBatch, tracked: TrackedBatch) -> BoolArray:
        """Sets the boxes to publish, with their tracks.

        Args:
            results: of frames with boxes.
            found: their boxes.
            tracked: what is known of these.

        Returns:
            (N,) which of the boxes these are.
        """
        ends, xyxy, score, class_id, number, age_s, velocity, kept = self._selection(found, tracked)
        begin = 0
        for result, end in zip(results, ends, strict=True):
            of = slice(begin, end)
            result.xyxy, result.score, result.class_id = xyxy[of], score[of], class_id[of]
            result.tracks = Tracks(number[of], age_s[of], velocity[of])
            begin = end
        return kept
