"""One classifier: which objects it looks at, its queue of crops, and the thread that classifies them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog

from streamd.config.classifiers import ClassifierSettings
from streamd.engine import EngineSettings
from streamd.errors import FrameError
from streamd.events.evidence.snapshots import quality_of
from streamd.flow.threads import NamedThread
from streamd.heads.postprocess import class_numbers
from streamd.imaging.crops import CropRefused, bgr_frame, cut
from streamd.imaging.upright import Download
from streamd.runtime.classify.budget import Budget
from streamd.runtime.classify.crop import WAITING_FRAMES, Crop, Results, part_of
from streamd.runtime.classify.objects import FORGET_S, MAX_TRACKS, Known
from streamd.runtime.classify.opening import open_classifier, settle
from streamd.telemetry.classifiers import ClassifierCounts
from streamd.types import Detections, Frame

log = structlog.get_logger(__name__)

MOST_WAITING = 512
"""Crops that wait for a classifier."""
LONGEST_WAIT_S = 2.0
"""Fewer may wait if the last of them would wait for longer."""
DEVICE_SIDE = 512
"""Longest side of a crop that is made of a frame in device memory, in pixels."""
RETRY_S = (1.0, 60.0)
"""Shortest and longest rest after a failure."""
TIDY_S = 5.0


class Classifier:
    """One second-stage model with its queue and thread.

    Args:
        settings: of the classifier.
        engine: of the detector, with one device.
        labels: of the detector.
        tell: receives results, on the classifier's thread.
        downloads: by CUDA ordinal: what brings a picture from the device.
        generations: by stream, in a fleet; may change.

    Raises:
        StreamdError: the model cannot be used, or the detector has no such class.
    """

    def __init__(
        self, settings: ClassifierSettings, engine: EngineSettings, labels: Sequence[str],
        tell: Callable[[Classifier, Results], None], downloads: Mapping[int, Download], generations: Mapping[str, int],
    ) -> None:  # fmt: skip
        self.name = settings.name
        self.counts = ClassifierCounts(settings.name)
        self._detector_labels = labels
        self._tell, self._downloads, self._generations = tell, downloads, generations
        self.objects: dict[str, dict[int, Known]] = {}
        """By stream and track."""
        self.lock = threading.Lock()
        self._ready = threading.Condition(self.lock)
        self._queue: deque[Crop] = deque()
        self._frames_held = 0
        self._most_waiting = MOST_WAITING
        self._each_s: float | None = None
        """How long one crop takes, pauses included."""
        self._failures = 0
        self._broken_until = 0.0
        self._tidy_at = time.monotonic() + TIDY_S
        self._stop = threading.Event()
        self._thread = NamedThread(self._run, f"classify-{settings.name}")
        self.settings = settings
        self._budget = Budget(settings.budget)
        self._wanted = self.mask(settings)
        self._backend, self._scores = open_classifier(settings, engine)
        self.labels = self._scores.labels
        try:
            self._backend.start()
            self._slot = self._backend.slots[0]
            settle(self._backend, self._scores, settings.name)
        except BaseException:
            self._backend.close()
            raise

    def adapt(self, settings: ClassifierSettings) -> None:
        """Adopts settings that differ only in `ClassifierSettings.HOT`.

        Raises:
            ConfigError: the detector has no such class.
        """
        wanted = self.mask(settings)
        with self.lock:
            if settings.budget != self.settings.budget:
                self._budget = Budget(settings.budget)
            self._wanted = wanted
            self.settings = settings

    def mask(self, settings: ClassifierSettings) -> npt.NDArray[np.bool_]:
        """(C,) the detector's classes that are classified."""
        wanted = np.zeros(len(self._detector_labels), np.bool_)
        wanted[class_numbers(settings.classes, self._detector_labels, f"classifier {self.name}: classes")] = True
        return wanted

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    # ------------------------------------------------------------------------------------------- publishing threads

    def look(self, frame: Frame, detections: Detections, now: float) -> None:
        """Takes the crops of a frame that are worth classifying. Never waits.

        Args:
            frame: published, not released yet.
            detections: its boxes.
            now: monotonic seconds.
        """
        boxes = self._wanted[detections.class_id].nonzero()[0]
        if not len(boxes):
            return
        if detections.tracks is None:
            for box in boxes.tolist():
                self._take(frame, detections, box, None, 0, now)
            return
        objects = self.objects.get(frame.stream)
        if objects is None:
            objects = self.objects[frame.stream] = {}
        numbers = detections.tracks.number[boxes].tolist()
        for box, track in zip(boxes.tolist(), numbers, strict=True):
            if not track:
                continue
            known = objects.get(track)
            if known is None:
                if len(objects) >= MAX_TRACKS:
                    self._miss(frame.stream, "too_many")
                    continue
                known = objects[track] = Known(now)
            known.seen_at = now
            if not known.pending and now >= known.again_at:
                self._take(frame, detections, box, known, track, now)

    def _take(
        self, frame: Frame, detections: Detections, box: int, known: Known | None, track: int, now: float
    ) -> None:
        settings = self.settings
        x1, y1, x2, y2 = detections.xyxy[box].tolist()
        quality = quality_of(detections, box)
        if known is not None and not known.wants(quality, now):
            return
        if min(x2 - x1, y2 - y1) < settings.min_size:
            if known is None or not known.told_small:
                self._miss(frame.stream, "too_small")
            if known is not None:
                known.told_small = True
            return
        reason = self._refuse(known, now)
        if reason is None:
            try:
                crop = self._cut(frame, (x1, y1, x2, y2))
            except CropRefused as refusal:
                reason = refusal.reason
            else:
                crop.box, crop.detections, crop.known, crop.track = box, detections, known, track
                # The box may lose the stream and have it again before the crop is classified.
                crop.generation = self._generations.get(frame.stream, 0)
                if known is not None:
                    known.taken(quality, now, settings.refresh_s)
                self._put(crop)
                return
        self._miss(frame.stream, reason)
        if known is not None:
            known.lost(now)

    def _refuse(self, known: Known | None, now: float) -> str | None:
        """Why no crop can be taken now; None if one can, which is then spent."""
        first = known is None or known.crops == 0
        with self.lock:
            if now < self._broken_until:
                return "failed"
            if len(self._queue) >= (self._most_waiting if first else self._most_waiting // 2):
                return "queue_full"
            if self._stop.is_set():
                return "shutdown"
            return None if self._budget.admit(now, first=first) else "budget"

    def _cut(self, frame: Frame, corners: tuple[float, float, float, float]) -> Crop:
        part = part_of(corners, self.settings.margin, frame.width, frame.height)
        left = self.settings.memory_mb * 1e6 - self.counts.held_bytes
        if frame.picture.device is None:
            return Crop(*cut(frame, part, left), 0, None, None)  # type: ignore[arg-type]
        if frame.picture.device not in self._downloads:
            raise CropRefused("device")
        size = 3 * DEVICE_SIDE * DEVICE_SIDE
        if size > left:
            raise CropRefused("memory")
        with self.lock:
            if self._frames_held >= WAITING_FRAMES:
                raise CropRefused("surfaces")
            self._frames_held += 1
        return Crop(replace(frame, roi=part), size, 0, None, None)  # type: ignore[arg-type]

    def _put(self, crop: Crop) -> None:
        with self._ready:
            self._queue.append(crop)
            self.counts.waiting = len(self._queue)
            self.counts.held_bytes += crop.bytes
            self._ready.notify()

    def _miss(self, stream: str, reason: str, count: int = 1) -> None:
        with self.lock:
            self.counts.missed[stream, reason] += count

    # ------------------------------------------------------------------------------------------ the classifier's thread

    def _run(self) -> None:
        while (batch := self._next()) is not None:
            began = time.monotonic()
            if not batch:
                self._tidy(began)
                continue
            try:
                self._tell(self, self._classify(batch))
                self._failures = 0
            except Exception as error:  # noqa: BLE001 - whatever fails here must not cost a frame
                self._fail(batch, error)
            worked_s = time.monotonic() - began
            with self.lock:
                self.counts.busy_s += worked_s
                self.counts.held_bytes -= sum(crop.bytes for crop in batch)
                pause_s = self._budget.pause(worked_s)
                self._pace((worked_s + pause_s) / len(batch))
            del batch
            self._tidy(time.monotonic())
            self._stop.wait(pause_s)

    def _pace(self, each_s: float) -> None:
        """Adapts the number of crops that may wait, so that none waits for long."""
        self._each_s = each_s if self._each_s is None else 0.8 * self._each_s + 0.2 * each_s
        most = int(LONGEST_WAIT_S / self._each_s) if self._each_s > 0 else MOST_WAITING
        self._most_waiting = max(2 * self._backend.spec.max_batch, min(MOST_WAITING, most))

    def _next(self) -> list[Crop] | None:
        """What waits, up to a batch; None at the end."""
        most = self._backend.spec.max_batch
        with self._ready:
            while not self._queue:
                if self._stop.is_set():
                    return None
                self._ready.wait(TIDY_S)
                if not self._queue:
                    break
            batch = [self._queue.popleft() for _ in range(min(most, len(self._queue)))]
            self.counts.waiting = len(self._queue)
            if self._stop.is_set():
                for crop in (*batch, *self._queue):
                    self.counts.missed[crop.detections.stream, "shutdown"] += 1
                return None
        return batch

    def _classify(self, batch: list[Crop]) -> list[tuple[Crop, npt.NDArray[np.float64]]]:
        good = self._fill(batch)
        if not good:
            return []
        self._backend.infer(self._slot)
        outputs: Any = self._backend.collect(self._slot)
        probabilities, valid = self._scores(outputs)
        results = []
        for crop, row, right in zip(good, probabilities, valid.tolist(), strict=True):
            if right:
                results.append((crop, row.copy()))
            else:
                self._lose(crop, "invalid_output")
        return results

    def _fill(self, batch: list[Crop]) -> list[Crop]:
        """Fills the slot; returns the crops that are in it. One that cannot be read must not affect the others."""
        with contextlib.suppress(FrameError):
            self._backend.preprocess(self._slot, [self._bring(crop) for crop in batch])
            return batch
        good = []
        for crop in batch:
            try:
                self._backend.preprocess(self._slot, [self._bring(crop)])
            except FrameError as error:
                self._lose(crop, "format", error)
            else:
                good.append(crop)
        if good:
            self._backend.preprocess(self._slot, [crop.frame for crop in good])
        return good

    def _bring(self, crop: Crop) -> Frame:
        """The crop on the host."""
        frame, roi = crop.frame, crop.frame.roi
        if frame.picture.device is None or roi is None:
            return frame
        across, down = roi.width * frame.picture.pixel_aspect, roi.height
        scale = min(1.0, DEVICE_SIDE / max(across, down))
        image = self._downloads[frame.picture.device](frame, max(1, round(across * scale)), max(1, round(down * scale)))
        crop.frame = bgr_frame(frame, image)
        with self.lock:
            self._frames_held -= 1
        return crop.frame

    def _lose(self, crop: Crop, reason: str, error: Exception | None = None) -> None:
        self._release(crop)
        self._miss(crop.detections.stream, reason)
        if crop.known is not None:
            crop.known.lost(time.monotonic())
        if error is not None:
            log.warning("crop not classified", classifier=self.name, reason=reason, error=str(error))

    def _release(self, crop: Crop) -> None:
        if crop.frame.picture.device is not None:
            with self.lock:
                self._frames_held -= 1

    def _fail(self, batch: Sequence[Crop], error: Exception) -> None:
        self._failures += 1
        rest_s = min(RETRY_S[1], RETRY_S[0] * 2 ** min(self._failures - 1, 10))
        now = time.monotonic()
        for crop in batch:
            self._release(crop)
            self._miss(crop.detections.stream, "failed")
            if crop.known is not None:
                crop.known.lost(now)
        with self.lock:
            self._broken_until = now + rest_s
        log.error(
            "the classifier failed; frames are not affected", classifier=self.name, error=str(error),
            kind=type(error).__name__, next_attempt_s=rest_s,
        )  # fmt: skip

    def _tidy(self, now: float) -> None:
        """Forgets tracks that were not seen for long."""
        if now < self._tidy_at:
            return
        self._tidy_at = now + TIDY_S
        for objects in list(self.objects.values()):
            for track, known in list(objects.items()):
                if now - known.seen_at > FORGET_S and not known.pending:
                    objects.pop(track, None)

    def forget(self, stream: str) -> None:
        """The stream is gone."""
        self.objects.pop(stream, None)

    def close(self, timeout: float) -> bool:
        """Ends the thread and closes the model; False if that takes longer than `timeout` seconds."""
        self._stop.set()
        with self._ready:
            self._ready.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout)
            if self._thread.is_alive():
                return False
        self._backend.close()
        return True
