"""One picture of each event: the frame that shows its object best.

While an event goes on, each frame's box of its track is judged: larger, more certain and not cut off by the edge is
better. A frame that is clearly better than the best so far is passed to a thread, which makes a JPEG of it. The hot
path compares a few numbers, and only for streams with an event under way.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import structlog

from streamd.events.evidence.files import EvidenceError, NewFile, Room, Writability, reason_of, stem_of
from streamd.events.record import Event, Media
from streamd.flow.threads import NamedThread
from streamd.types import Detections, Frame

log = structlog.get_logger(__name__)

Image = npt.NDArray[np.uint8]
Scale = Callable[[Frame, int], Image | None]
"""The whole upright picture as (H, W, 3) BGR, at most so wide; None if it cannot be accessed."""
Link = Callable[[str, str, Media], object]

MAX_OPEN = 256
"""Events whose pictures are being looked for at the same time."""
UNDER_WAY = 2
"""Frames that wait for the thread: each holds a decoder's picture."""
BETTER = 1.2
"""A frame replaces the best so far if it is better by this factor."""
PAUSE_S = 0.2
"""Between two pictures of an event."""
FIRST_S = 1.0
"""The first picture is written so long after the event's begin, so that a message about it can have one."""
WAIT_S = 3.0
"""An event that has ended waits so long for a picture that shows its object."""
UNSEEN = 1e-9
"""Quality of a picture in which the event's object is not seen."""
EDGE = 2.0
"""A box that comes this close to the edge of the picture, in pixels, may be cut off."""
CUT = 0.25
"""What a box that may be cut off counts."""
WIDTH = 1920
QUALITY = 90
TICK_S = 0.25
WARN_S = 60.0


class Best(NamedTuple):
    """The picture that is kept of an event."""

    jpeg: bytes
    box: tuple[float, float, float, float] | None
    """x1, y1, x2, y2 in pixels of the JPEG."""
    text: str


@dataclass(slots=True)
class _Wanted:
    """An event whose picture is looked for. The hot path writes quality and due, the thread the rest."""

    event: Event
    stem: Path
    begun_at: float
    before: Image | None = None
    """A small picture from before the event."""
    unseen: float = 0.0
    """Quality of a picture that does not show its object, though it has one."""
    quality: float = 0.0
    due_at: float = 0.0
    ended_at: float | None = None
    best: Best | None = None
    written: Best | None = None


class _Shot(NamedTuple):
    frame: Frame
    detections: Detections
    wanted: list[tuple[_Wanted, int]]
    """And the number of the object's box; -1 for none."""


def quality_of(d: Detections, box: int) -> float:
    """How well box number `box` shows its object: its area in pixels times its score, less if it may be cut off."""
    x1, y1, x2, y2 = d.xyxy[box].tolist()
    cut = x1 < EDGE or y1 < EDGE or x2 > d.width - EDGE or y2 > d.height - EDGE
    return float((x2 - x1) * (y2 - y1) * d.score[box] * (CUT if cut else 1.0))


class SnapshotMaker:
    """Used as a tap of published frames (`wanted`, `take`). `event` may be called by any thread; none of them waits.

    Args:
        folder: of the media.
        room: whether there is room.
        link: notes each picture.
        scale: makes pictures of frames.
    """

    def __init__(self, folder: Path, room: Room, link: Link, scale: Scale) -> None:
        self._folder, self._room, self._link, self._scale = folder, room, link, scale
        self._lock = threading.Lock()
        self.wanted: Mapping[str, Mapping[str, _Wanted]] = {}
        """Events under way by stream and id. Replaced, never changed: the hot path reads it without a lock."""
        self._shots: queue.Queue[_Shot | None] = queue.Queue(UNDER_WAY)
        self._thread: NamedThread | None = None
        self._stop = False
        self._warned_at = -WARN_S
        self._writability = Writability()
        self.written: Counter[str] = Counter()
        self.failed: Counter[tuple[str, str]] = Counter()

    @property
    def problem(self) -> str:
        """Why snapshots cannot be written, see `Writability`."""
        return self._writability.problem

    def event(self, event: Event, before: Image | None = None) -> None:
        """An event has begun, ended or happened.

        Args:
            event: as submitted.
            before: (H, W) or (H, W, 3) picture from before the event, written beside the snapshot.
        """
        if event.kind == "end":
            found = self.wanted.get(event.stream, {}).get(event.id)
            if found is not None:
                found.ended_at = time.monotonic()
            return
        if event.kind not in ("begin", "instant"):
            return
        now = time.monotonic()
        stem = self._folder / stem_of(event.stream, event.at_ns, event.id)
        new = _Wanted(event, stem, now, before, 0.0 if event.track is None else UNSEEN)
        if event.kind == "instant":
            new.ended_at = now
        with self._lock:
            if sum(map(len, self.wanted.values())) >= MAX_OPEN or self._stop:
                self._link(event.id, "snapshot", Media(f"{new.stem}.jpg", "failed", "too_many"))
                self.failed[event.stream, "too_many"] += 1
                return
            self.wanted = {**self.wanted, event.stream: {**self.wanted.get(event.stream, {}), event.id: new}}
            if self._thread is None:
                self._thread = NamedThread(self._run, "snapshots")
                self._thread.start()
        self._link(event.id, "snapshot", Media(f"{new.stem}.jpg", "pending"))

    def take(self, frame: Frame, detections: Detections) -> None:
        """Keeps the frame if it shows the object of an event under way clearly better than those before."""
        now = time.monotonic()
        chosen: list[tuple[_Wanted, int]] = []
        qualities: list[float] = []
        for wanted in self.wanted.get(frame.stream, {}).values():
            if now < wanted.due_at or (wanted.ended_at is not None and wanted.quality > wanted.unseen):
                continue
            box = _box_of(detections, wanted.event)
            # Without its box, the first frame is better than none.
            quality = quality_of(detections, box) if box >= 0 else UNSEEN
            if quality > wanted.quality * BETTER:
                chosen.append((wanted, box))
                qualities.append(quality)
        if not chosen:
            return
        try:
            self._shots.put_nowait(_Shot(frame, detections, chosen))
        except queue.Full:
            return  # the next one is almost as good
        for (wanted, _), quality in zip(chosen, qualities, strict=True):
            wanted.quality, wanted.due_at = quality, now + PAUSE_S

    def close(self, timeout: float) -> bool:
        """Writes what there is; False if that takes longer than `timeout` seconds."""
        self._stop = True
        thread = self._thread
        if thread is not None:
            thread.join(timeout)
        return thread is None or not thread.is_alive()

    # ------------------------------------------------------------------------------------------------------ thread

    def _run(self) -> None:
        while True:
            try:
                shot = self._shots.get(timeout=TICK_S)
            except queue.Empty:
                shot = None
            if shot is not None:
                self._make(shot)
                del shot  # the picture goes back to its decoder
            stopping = self._stop and self._shots.empty()
            self._write_due(stopping)
            if stopping:
                return
            self._writability.look(self._room)

    def _make(self, shot: _Shot) -> None:
        try:
            image = self._scale(shot.frame, WIDTH)
            if image is None:
                raise EvidenceError("internal", "the picture cannot be accessed")
            jpeg = _encoded(image)
        except Exception as error:  # noqa: BLE001 - a picture that cannot be made must not end the thread
            self._warn("a snapshot could not be made", error)
            return
        d = shot.detections
        across, down = image.shape[1] / d.width, image.shape[0] / d.height
        for wanted, number in shot.wanted:
            box, text = None, wanted.event.label or ""
            if number >= 0:
                x1, y1, x2, y2 = d.xyxy[number].tolist()
                box = (x1 * across, y1 * down, x2 * across, y2 * down)
                text = f"{d.model.labels[d.class_id[number]]} {d.score[number]:.2f}"
            wanted.best = Best(jpeg, box, text)

    def _write_due(self, stopping: bool) -> None:
        now = time.monotonic()
        for wanted in [each for events in self.wanted.values() for each in events.values()]:
            shown = wanted.best is not None and (wanted.best.box is not None or wanted.event.track is None)
            over = stopping or (wanted.ended_at is not None and (shown or now > wanted.ended_at + WAIT_S))
            if wanted.best is not None and wanted.best is not wanted.written:
                if over or (wanted.written is None and now > wanted.begun_at + FIRST_S):
                    self._write(wanted, wanted.best)
            elif over and wanted.best is None:
                self._failed(wanted, "no_picture")
            if over:
                self._forget(wanted)

    def _write(self, wanted: _Wanted, best: Best) -> None:
        wanted.written = best
        try:
            self._room.check()
            files = [("snapshot_plain", ".plain.jpg", best.jpeg), ("snapshot", ".jpg", annotated(best))]
            if wanted.before is not None:
                files.insert(0, ("snapshot_before", ".before.jpg", _encoded(wanted.before)))
                wanted.before = None
            for role, ending, data in files:
                file = NewFile(wanted.stem.with_name(wanted.stem.name + ending))
                try:
                    file.write(data)
                    file.finish()
                finally:
                    file.discard()
                self._link(wanted.event.id, role, Media(str(file.path)))
        except Exception as error:  # noqa: BLE001
            self._failed(wanted, reason_of(error))
            self._writability.failed(error, reason_of(error))
            self._warn("a snapshot could not be written", error)
            return
        self._writability.written()
        self.written[wanted.event.stream] += 1

    def _failed(self, wanted: _Wanted, reason: str) -> None:
        self.failed[wanted.event.stream, reason] += 1
        self._link(wanted.event.id, "snapshot", Media(f"{wanted.stem}.jpg", "failed", reason))

    def _forget(self, wanted: _Wanted) -> None:
        stream = wanted.event.stream
        with self._lock:
            left = {name: each for name, each in self.wanted.get(stream, {}).items() if each is not wanted}
            others = {name: each for name, each in self.wanted.items() if name != stream}
            self.wanted = {**others, stream: left} if left else others

    def _warn(self, what: str, error: Exception) -> None:
        now = time.monotonic()
        if now >= self._warned_at + WARN_S:
            self._warned_at = now
            log.error(what, reason=reason_of(error), error=str(error))


def _box_of(d: Detections, event: Event) -> int:
    """The number of the box of the event's track; -1 if it is not seen in this frame."""
    if d.tracks is None or event.track is None:
        return -1
    found = np.nonzero(d.tracks.number == event.track)[0]
    return int(found[0]) if len(found) else -1


def _encoded(image: Any) -> bytes:
    import cv2

    good, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    if not good:
        raise EvidenceError("internal", "the picture could not be encoded")
    return bytes(data.tobytes())


def annotated(best: Best) -> bytes:
    """The JPEG with the object's box and its label."""
    import cv2

    if best.box is None:
        return best.jpeg
    image: Any = cv2.imdecode(np.frombuffer(best.jpeg, np.uint8), cv2.IMREAD_COLOR)
    x1, y1, x2, y2 = (round(value) for value in best.box)
    width = max(2, image.shape[1] // 480)
    size = max(0.4, image.shape[1] / 1600)
    font = cv2.FONT_HERSHEY_SIMPLEX
    (across, down), base = cv2.getTextSize(best.text, font, size, 1)
    top = y1 - down - base if y1 >= down + base else y2
    left = min(max(0, x1), max(0, image.shape[1] - across))
    cv2.rectangle(image, (x1, y1), (x2, y2), (40, 200, 255), width)
    cv2.rectangle(image, (left, top), (left + across, top + down + base), (40, 200, 255), -1)
    cv2.putText(image, best.text, (left, top + down), font, size, (0, 0, 0), 1, cv2.LINE_AA)
    return _encoded(image)
