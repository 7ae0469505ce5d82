"""The analysis of one model instance's batches: tracks, rules, and which boxes are published."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import structlog

from streamd.analysis.rules import RuleEvent
from streamd.analysis.rules.engine import RuleEngine
from streamd.analysis.tracking import Observation, Tracked
from streamd.analysis.tracking.observation import TrackedBatch
from streamd.flow.stream import Result
from streamd.heads import DetectSettings
from streamd.heads.postprocess import class_numbers, groups
from streamd.runtime.stream_analysis import StreamAnalysis
from streamd.types import Float32Array, ModelInfo, Tracks

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
        self._floor: Float32Array = floor
        self._weak = analytics.tracking.publish_weak

    def step(self, batch: Sequence[Result]) -> None:
        """See `Analysis.step`."""
        streams = self._analytics.streams
        known = [streams[result.output.name] for result in batch]
        seen: list[tuple[Observation | None, int]] = []
        for each, result in zip(known, batch, strict=True):
            observation = None
            if result.looked:
                observation = each.observation(result)
            else:
                each.pass_over(result.frame)
            seen.append((observation, each.now_ns))
        observations = [observation for observation, _ in seen if observation is not None]
        found = TrackedBatch.of(self._tracker.step(observations))
        looked = batch if len(observations) == len(batch) else [result for result in batch if result.looked]
        at = 0
        for each, result, (observation, now_ns) in zip(known, batch, seen, strict=True):
            if observation is None:
                if each.rules is not None:
                    self._pass_over(each, result, now_ns)
                continue
            if (error := found.errors.get(at)) is not None:
                self._failed(each, "tracker", error)
            if each.rules is not None:
                self._judge(each, observation, found[at], result, now_ns)
            at += 1
        first = 0
        for begin, end in groups([len(result.score) for result in looked]):
            few = looked[begin:end]
            last = first + sum([len(result.score) for result in few])
            self._publishable(few, found.joined, slice(first, last))
            first = last
        said = self._analytics.said
        if said is not None:
            for result in looked:
                assert result.tracks is not None
                result.attributes = said.of(result.output.name, result.tracks.number.tolist())

    def _judge(
        self, each: StreamAnalysis, observation: Observation, tracked: Tracked, result: Result, now_ns: int
    ) -> None:
        def judged(rules: RuleEngine) -> list[RuleEvent]:
            return each.judge(observation, tracked, self._floor[tracked.class_id] < np.inf, result.frame, now_ns)

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

    def _publishable(self, results: Sequence[Result], found: Tracked, which: slice) -> None:
        """Selects the boxes to publish, by score, class and, if configured, by track.

        Args:
            results: of frames with boxes.
            found: what is known of the boxes of a batch, one frame after the other.
            which: those of these frames.
        """
        if not results:
            return
        class_id, score = found.class_id[which], _joined([r.score for r in results])
        floor = self._floor[class_id]
        keep = score >= floor
        if self._weak:
            keep |= found.confirmed[which] & (floor < np.inf)
        xyxy, number, age_s, velocity = None, found.id[which], found.age_s[which], found.velocity[which]
        bounds = kept = [0, *itertools.accumulate([len(r.score) for r in results])]
        if np.count_nonzero(keep) < len(keep):
            xyxy, score, class_id = _joined([r.xyxy for r in results])[keep], score[keep], class_id[keep]
            number, age_s, velocity = number[keep], age_s[keep], velocity[keep]
            # How many are kept before each frame's boxes, and before the end.
            kept = np.concatenate((_NONE, keep.cumsum()))[bounds].tolist()
        for i, result in enumerate(results):
            begin, end = kept[i], kept[i + 1]
            result.class_id = class_id[begin:end]
            result.tracks = Tracks(number[begin:end], age_s[begin:end], velocity[begin:end])
            if xyxy is not None:
                result.xyxy, result.score = xyxy[begin:end], score[begin:end]
                if result.details is not None:
                    result.details = result.details.take(keep[bounds[i] : bounds[i + 1]])


_NONE = np.zeros(1, np.intp)


def _joined(arrays: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
