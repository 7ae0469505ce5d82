"""All classifiers of a process: what they said of each track, for messages and events."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

import structlog
from prometheus_client import CollectorRegistry

from streamd.config.classifiers import ClassifierSettings
from streamd.engine import EngineSettings
from streamd.imaging.upright import Download
from streamd.runtime.classify.classifier import TIDY_S, Classifier
from streamd.runtime.classify.crop import WAITING_FRAMES, Results
from streamd.runtime.classify.objects import attribute_of
from streamd.sinks.envelope import OutgoingClasses
from streamd.telemetry.classifiers import ClassifierMetrics
from streamd.types import Attribute, Detections, Frame

log = structlog.get_logger(__name__)

WARN_S = 60.0


class Classification:
    """A tap of published frames (`wanted`, `take`).

    Args:
        classifiers: the section.
        engine: of the detector, with one device.
        labels: of the detector.
        registry: for the metrics.
        publish: receives what is said of objects without tracks; must not block.
        boot_id: identity of this process in every message.
        downloads: by CUDA ordinal: what brings a picture from the device.
        generations: by stream, in a fleet; may change.

    Raises:
        StreamdError: a model cannot be used, or the detector has no such class; nothing stays open.
    """

    def __init__(
        self, classifiers: Sequence[ClassifierSettings], engine: EngineSettings, labels: Sequence[str],
        registry: CollectorRegistry, publish: Callable[[OutgoingClasses], None], boot_id: str,
        downloads: Mapping[int, Download], generations: Mapping[str, int],
    ) -> None:  # fmt: skip
        self._publish, self._boot_id = publish, boot_id
        self._lock = threading.Lock()
        self._known: dict[str, dict[int, tuple[Attribute, ...]]] = {}
        """By stream and track."""
        self._warned_at = -WARN_S
        self._tidy_at = 0.0
        self._streams: frozenset[str] = frozenset()
        self.wanted: Mapping[str, tuple[Classifier, ...]] = {}
        """Classifiers by stream. Replaced, never changed."""
        self.classifiers: list[Classifier] = []
        try:
            for settings in classifiers:
                self.classifiers.append(Classifier(settings, engine, labels, self._told, downloads, generations))
        except BaseException:
            self.close(1.0)
            raise
        self._metrics = ClassifierMetrics(registry, lambda: [each.counts for each in self.classifiers])

    @property
    def frames_held(self) -> int:
        """Frames in device memory that may be held back from their decoder."""
        return WAITING_FRAMES * len(self.classifiers)

    def start(self) -> None:
        """Starts the threads."""
        for each in self.classifiers:
            each.start()

    # --------------------------------------------------------------------------------------------- publishing threads

    def take(self, frame: Frame, detections: Detections) -> None:
        """Takes crops of a published frame. Never raises."""
        now = time.monotonic()
        for each in self.wanted.get(frame.stream, ()):
            try:
                each.look(frame, detections, now)
            except Exception as error:  # noqa: BLE001 - a crop must not end the engine
                self._warn(each, frame.stream, error, now)

    def _warn(self, classifier: Classifier, stream: str, error: Exception, now: float) -> None:
        with classifier.lock:
            classifier.counts.missed[stream, "failed"] += 1
        if now >= self._warned_at + WARN_S:
            self._warned_at = now
            log.error("crop could not be taken", classifier=classifier.name, stream=stream, error=str(error))

    def of(self, stream: str, tracks: Sequence[int]) -> list[tuple[Attribute, ...]] | None:
        """What is known of these tracks; None if nothing is known of any."""
        known = self._known.get(stream)
        if not known:
            return None
        found = [known.get(track, ()) for track in tracks]
        return found if any(found) else None

    def details(self, stream: str, track: int) -> dict[str, Any]:
        """What is known of a track as plain values, by classifier."""
        return {
            each.classifier: {"label": each.label, "score": each.score, "observed_seq": each.observed_seq}
            for each in self._known.get(stream, {}).get(track, ())
        }

    # ------------------------------------------------------------------------------------------ classifiers' threads

    def _told(self, classifier: Classifier, results: Results) -> None:
        settings, labels, now_ns = classifier.settings, classifier.labels, time.monotonic_ns()
        latency = self._metrics.latency.labels(classifier=classifier.name)
        alone: list[tuple[Any, Attribute | None]] = []
        for crop, probabilities in results:
            d = crop.detections
            latency.observe((now_ns - d.times.captured) / 1e9)
            if crop.known is not None:
                crop.known.vote(probabilities, d.seq)
                told = crop.known.attribute(classifier.name, labels, settings.threshold, settings.top_k)
                # The stream may have ended, and begun again with other tracks of the same numbers.
                if classifier.objects.get(d.stream, {}).get(crop.track) is crop.known:
                    self._note(classifier, d.stream, crop.track, told)
            else:
                told = attribute_of(
                    classifier.name, labels, probabilities, settings.threshold, settings.top_k, d.seq
                )  # fmt: skip
                alone.append((crop, told))
            with classifier.lock:
                classifier.counts.classified[d.stream, told.label if told is not None else ""] += 1
        for _, group in groupby(alone, key=lambda each: id(each[0].detections)):
            found = [(crop, told) for crop, told in group if told is not None]
            if found:
                first, boxes = found[0][0], [crop.box for crop, _ in found]
                said = [told for _, told in found]
                self._publish(OutgoingClasses(first.detections, boxes, said, self._boot_id, first.generation))

    def _note(self, classifier: Classifier, stream: str, track: int, told: Attribute | None) -> None:
        with self._lock:
            if stream not in self._streams:
                return
            known = self._known.setdefault(stream, {})
            others = [each for each in known.get(track, ()) if each.classifier != classifier.name]
            new = (*others, told) if told is not None else tuple(others)
            if new:
                known[track] = tuple(sorted(new, key=lambda each: each.classifier))
            else:
                known.pop(track, None)

    def tick(self, now: float) -> None:
        """Forgets what the classifiers have forgotten. To be called now and then; `now` is in monotonic seconds."""
        if now < self._tidy_at:
            return
        self._tidy_at = now + TIDY_S
        for stream, known in list(self._known.items()):
            alive = {track for each in self.classifiers for track in list(each.objects.get(stream, ()))}
            with self._lock:
                for track in known.keys() - alive:
                    del known[track]

    # --------------------------------------------------------------------------------------------------- main thread

    def add(self, stream: str) -> None:
        """A stream begins."""
        self._streams |= {stream}
        self._settle()

    def remove(self, stream: str) -> None:
        """A stream is gone."""
        self._streams -= {stream}
        self._settle()
        for each in self.classifiers:
            each.forget(stream)
        with self._lock:
            self._known.pop(stream, None)

    def check(self, classifiers: Sequence[ClassifierSettings]) -> None:
        """Whether `adapt` can adopt them.

        Raises:
            ConfigError: the detector has no such class.
        """
        for each, settings in zip(self.classifiers, classifiers, strict=True):
            each.mask(settings)

    def adapt(self, classifiers: Sequence[ClassifierSettings]) -> None:
        """Adopts settings that differ only in `ClassifierSettings.HOT`. What is known is judged by the new ones."""
        for each, settings in zip(self.classifiers, classifiers, strict=True):
            if settings == each.settings:
                continue
            each.adapt(settings)
            for stream, objects in list(each.objects.items()):
                for track, known in list(objects.items()):
                    told = known.attribute(each.name, each.labels, settings.threshold, settings.top_k)
                    self._note(each, stream, track, told)
        self._settle()

    def _settle(self) -> None:
        wanted = {
            stream: tuple(c for c in self.classifiers if c.settings.streams is None or stream in c.settings.streams)
            for stream in self._streams
        }
        self.wanted = {stream: chosen for stream, chosen in wanted.items() if chosen}

    def close(self, timeout: float) -> bool:
        """Ends every thread; False if one takes longer than `timeout` seconds."""
        self.wanted = {}
        deadline = time.monotonic() + timeout
        closed = [each.close(max(0.0, deadline - time.monotonic())) for each in self.classifiers]
        return all(closed)
