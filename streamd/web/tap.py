"""Small copies of frames with their detections for viewers, at a limited rate."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import structlog

from streamd.flow.threads import NamedThread
from streamd.imaging.upright import Download, Image, UprightScaler
from streamd.types import Detections, Frame

log = structlog.get_logger(__name__)

MAX_FPS = 10.0
"""Pictures per second of one stream."""
TOTAL_FPS = 60.0
"""Pictures per second over all streams, about a tenth of a core; shared among the streams."""
MAX_WIDTH = 1280
_QUALITY = 80
_WARN_EVERY_NS = 60_000_000_000
_UNDER_WAY = 2
"""Frames in device memory that wait for their pictures: each holds a decoder's surface."""
_CLOSE_S = 2.0


class Snapshot:
    """One frame's detections and its small picture."""

    def __init__(
        self, serial: int, detections: Detections, image: Image | None, heat: npt.NDArray[np.uint8] | None = None
    ) -> None:
        self.serial = serial
        """Increases across all streams."""
        self.stream = detections.stream
        self.detections = detections
        self.heat = heat
        """(rows, columns) where something moved lately, 0 to 255; None where the network looks at every frame."""
        self._image = image
        self._jpeg = b""
        self._lock = threading.Lock()

    def jpeg(self) -> bytes:
        """The picture as JPEG, encoded at first use; empty if there is none."""
        with self._lock:
            if self._image is not None:
                import cv2

                good, data = cv2.imencode(".jpg", self._image, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
                self._jpeg = data.tobytes() if good else b""
                self._image = None
            return self._jpeg


def heat_of(frame: Frame) -> npt.NDArray[np.uint8] | None:
    """A small copy of where something moved lately: the most of 2 × 2 cells each. What moves seldom shows, too."""
    heat = frame.view.heat if frame.view is not None else None
    if heat is None:
        return None
    rows, columns = (length // 2 for length in heat.shape)
    most = heat[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2).max(axis=(1, 3))
    out: npt.NDArray[np.uint8] = np.rint(255 * np.sqrt(np.clip(most, 0, 1))).astype(np.uint8)
    return out


class Passed(Snapshot):
    """A snapshot that a worker process has already turned into the page's record.

    Args:
        serial: serial number of the snapshot.
        stream: id of its stream.
        record: see `page.record`.
    """

    def __init__(self, serial: int, stream: str, record: bytes) -> None:
        self.serial, self.stream, self.record = serial, stream, record


@dataclass(frozen=True, slots=True)
class Wish:
    """Demand for one stream: most pictures per second, and their width."""

    fps: float
    width: int


class Viewer:
    """What one viewer has seen; created by `Tap.watch`, used by one thread."""

    def __init__(self, tap: Tap, streams: Collection[str]) -> None:
        self._tap = tap
        self._streams = frozenset(streams)
        self._seen = 0

    def wait(self, timeout: float) -> list[Snapshot] | None:
        """The newest snapshot of each stream that has a new one, oldest first; None if the daemon is stopping.

        Empty after `timeout` seconds. Snapshots taken between two calls are skipped, not queued.
        """
        new = self._tap.newer(self._streams, self._seen, timeout)
        if new:
            self._seen = new[-1].serial
        return new


class Tap:
    """Takes the pictures that viewers want and keeps the newest of each stream. Any thread."""

    def __init__(self) -> None:
        self.wanted: Mapping[str, Wish] = {}
        """Streams that somebody is watching. Replaced, never modified: the hot path reads it without a lock."""
        self.downloads: dict[int, Download] = {}
        """By CUDA ordinal: what brings a small picture from the device."""
        self._viewers: dict[Viewer, tuple[Collection[str], float, int]] = {}
        self._due: dict[str, int] = {}
        self._last: dict[str, Snapshot] = {}
        self._serial = 0
        self._closed = False
        self._device_frames: queue.Queue[tuple[Frame, Detections, int] | None] = queue.Queue(_UNDER_WAY)
        self._downloader: NamedThread | None = None
        self._changed = threading.Condition()
        self._shrink = UprightScaler(self.downloads)
        self._warned_at = -_WARN_EVERY_NS

    # ------------------------------------------------------------------------------------------------------ viewers

    @contextlib.contextmanager
    def watch(self, streams: Collection[str], fps: float, width: int) -> Iterator[Viewer]:
        """Requests pictures of `streams`, `fps` per second each and up to `width` pixels wide, until the block ends."""
        streams = frozenset(streams)
        viewer = Viewer(self, streams)
        with self._changed:
            self._viewers[viewer] = (streams, min(max(fps, 0.1), MAX_FPS), min(max(width, 64), MAX_WIDTH))
            self._settle()
        try:
            yield viewer
        finally:
            with self._changed:
                del self._viewers[viewer]
                self._settle()

    def _settle(self) -> None:
        wishes: dict[str, Wish] = {}
        left = TOTAL_FPS
        # From the least demanding viewer on: what it does not need of its equal share is left to the others.
        viewers = sorted((v for v in self._viewers.values() if v[0]), key=lambda v: v[1] * len(v[0]))
        for others, (streams, fps, width) in zip(range(len(viewers), 0, -1), viewers, strict=True):
            demand = fps * len(streams)
            granted = min(demand, left / others)
            left -= granted
            for stream in streams:
                other = wishes.get(stream, Wish(0, 0))
                wishes[stream] = Wish(max(fps * granted / demand, other.fps), max(width, other.width))
        self._take_wishes(wishes)

    def _take_wishes(self, wishes: Mapping[str, Wish]) -> None:
        for gone in self._last.keys() - wishes.keys():
            del self._last[gone]
        self.wanted = wishes

    def want(self, wishes: Mapping[str, Wish]) -> None:
        """In a worker process: sets what the viewers of the parent want, in place of viewers here."""
        with self._changed:
            self._take_wishes(wishes)

    def newer(self, streams: Collection[str] | None, serial: int, timeout: float) -> list[Snapshot] | None:
        """See `Viewer.wait`; all streams if `streams` is None."""

        def found() -> list[Snapshot]:
            # Not `streams` over `_last`: a client may name far more streams than there are snapshots.
            new = [s for s in self._last.values() if s.serial > serial]
            return new if streams is None else [s for s in new if s.stream in streams]

        with self._changed:
            self._changed.wait_for(lambda: self._closed or found(), timeout)
            return None if self._closed else sorted(found(), key=lambda s: s.serial)

    def close(self) -> None:
        """Ends every viewer."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            downloader = self._downloader
        if downloader is not None:
            # It uses a device that is about to be closed. There is room for the word: it takes no more frames.
            with contextlib.suppress(queue.Full):
                self._device_frames.put(None, timeout=_CLOSE_S)
            downloader.join(_CLOSE_S)

    # ------------------------------------------------------------------------------------------------------- frames

    def take(self, frame: Frame, detections: Detections) -> None:
        """Keeps a small copy of `frame` if somebody is watching its stream and the last copy is old enough.

        One thread at a time per stream. Never raises.
        """
        wish = self.wanted.get(frame.stream)
        if wish is None:
            return
        now = time.monotonic_ns()
        interval = int(1e9 / wish.fps)
        due = self._due.get(frame.stream, 0)
        if now < due:
            return
        # From the time it was due, so that 10 of 25 frames per second are 10 and not 8.3, but without catching up.
        self._due[frame.stream] = due + interval if now < due + interval else now + interval
        if frame.picture.device in self.downloads:
            self._enqueue(frame, detections, wish.width)
        else:
            self._keep(frame, detections, wish.width)

    def _enqueue(self, frame: Frame, detections: Detections, width: int) -> None:
        """The GPU may be busy for longer than the stage can wait: another thread does."""
        if self._downloader is None:
            with self._changed:
                if self._closed:
                    return
                if self._downloader is None:
                    self._downloader = NamedThread(self._download, "page-pictures")
                    self._downloader.start()
        if not self._closed:
            with contextlib.suppress(queue.Full):  # the viewer sees the next one
                self._device_frames.put_nowait((frame, detections, width))

    def _download(self) -> None:
        while (taken := self._device_frames.get()) is not None:
            if not self._closed:
                self._keep(*taken)
            del taken

    def _keep(self, frame: Frame, detections: Detections, width: int) -> None:
        try:
            image = self._shrink(frame, width)
        except Exception as error:  # noqa: BLE001 - a viewer's picture must not end the engine
            image = None
            now = time.monotonic_ns()
            if now - self._warned_at >= _WARN_EVERY_NS:
                self._warned_at = now
                log.warning("could not make a picture for the page", stream=frame.stream, error=str(error))
        with self._changed:
            if frame.stream in self.wanted:
                self._serial += 1
                self._last[frame.stream] = Snapshot(self._serial, detections, image, heat_of(frame))
                self._changed.notify_all()

    def put(self, stream: str, record: bytes) -> None:
        """Takes a snapshot from a worker process."""
        with self._changed:
            if stream in self.wanted:
                self._serial += 1
                self._last[stream] = Passed(self._serial, stream, record)
                self._changed.notify_all()
