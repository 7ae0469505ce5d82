"""The analysis of one stream: its tracks, its rules, and when its frames were captured."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from streamd.analysis.rules import RuleEvent, TrackedFrame
from streamd.analysis.rules.engine import RuleEngine
from streamd.analysis.tracking import Observation, StreamTracks, Tracked
from streamd.analysis.tracking.observation import FrameFacts
from streamd.flow.settings import StreamSettings
from streamd.types import Frame

BoolArray = npt.NDArray[np.bool_]

LATEST_MEDIA_S = 0.5
"""A media clock is ignored if its step since the previous frame differs from that of the arrival by more than this, or
all its steps together fall behind by more than this."""
AHEAD_MEDIA_S = 5.0
"""They may run ahead by so much: after a time without frames, all those arrive at once that the camera had kept."""
RETURN_S = 30.0
"""Time constant with which the time of arrival is returned to."""
LONGEST_MEDIA_S = 60.0
"""A longer step of a file's media clock is a jump."""
_LONGEST_MEDIA_NS = int(LONGEST_MEDIA_S * 1e9)


class MediaClock:
    """When frames were captured, in nanoseconds on a monotonic clock.

    The sender's media clock has no jitter; it is followed from frame to frame while it agrees with the time of
    arrival. A clock that runs fast or slow, and frames that were held up, can thus shift it by a few seconds only. For
    a file, the time of arrival means nothing: only its media clock counts, except for jumps.

    Args:
        live: the sender sets the pace.
    """

    def __init__(self, live: bool) -> None:
        self._live = live
        self._now_ns = 0
        self._pts_ns: int | None = None
        self._captured_ns = 0
        self._ahead_ns = 0
        """Of the time of arrival."""

    def time(self, frame: Frame) -> int:
        """The time of the stream's next frame."""
        captured, pts = frame.captured_ns, frame.pts_ns
        before, last = self._captured_ns, self._pts_ns
        self._captured_ns, self._pts_ns = captured, pts
        if not before:
            self._now_ns = captured
            return captured
        passed = captured - before
        if pts is not None and last is not None and pts > last:
            media = pts - last
            if not self._live:
                if media < _LONGEST_MEDIA_NS:
                    passed = media
            elif self._agrees(media, passed):
                ahead = self._ahead_ns + media - passed
                back = round(ahead * min(media / (RETURN_S * 1e9), 1.0))
                self._ahead_ns, passed = ahead - back, media - back
        now = self._now_ns = self._now_ns + (passed if passed > 1 else 1)
        return now

    def _agrees(self, media: int, arrived: int) -> bool:
        ahead = self._ahead_ns + media - arrived
        return abs(media - arrived) < LATEST_MEDIA_S * 1e9 and -LATEST_MEDIA_S * 1e9 < ahead < AHEAD_MEDIA_S * 1e9


class StreamAnalysis:
    """The analysis state of one stream. Its methods are called with `lock` held.

    Args:
        settings: settings of the stream.
        labels: labels of the model.
        ids: source of track ids.
        new_id: source of event ids.
        state: state of the rules on another box.
    """

    def __init__(
        self,
        settings: StreamSettings,
        labels: Sequence[str],
        ids: Iterator[int],
        new_id: Callable[[], str],
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self.lock = threading.Lock()
        self.stream = settings.id
        self.tracks = StreamTracks(ids)
        self.clock = MediaClock(settings.live)
        self.now_ns = 0
        """Time of the last frame by that clock."""
        self.paused_ns = 0
        """Time in which the network did not look, since nothing moved. The tracker's clock stands still meanwhile."""
        self.last_seq = -1
        self.last_frame_s = math.inf
        """Monotonic seconds of the last frame; infinite before the first and while the stream is known to be down."""
        self.last_wall_ns = 0
        """Unix time of the last frame that the rules have seen; 0 before."""
        self.rules: RuleEngine | None = None
        self.unreliable: tuple[str, ...] = ()
        """Why the camera cannot see; empty while it can."""
        self._labels, self._new_id = labels, new_id
        if state is not None and (settings.zones or settings.lines):
            self.rules = RuleEngine(settings.zones, settings.lines, labels, new_id, time.time_ns(), state)
        else:
            self.adapt(settings)

    def adapt(self, settings: StreamSettings) -> list[RuleEvent]:
        """Replaces zones and lines; returns the events that end the old ones."""
        zones, lines = settings.zones, settings.lines
        if self.rules is not None:
            return self.rules.reload(zones, lines, time.time_ns())
        if zones or lines:
            self.rules = RuleEngine(zones, lines, self._labels, self._new_id, time.time_ns())
            self.rules.unreliable(self.unreliable)
        return []

    def facts(self, frame: Frame, now_s: float) -> FrameFacts:
        """The tracker's input for one frame, without boxes; `now_s`: monotonic seconds."""
        last = self.last_seq
        seq = self.last_seq = frame.seq
        missed = seq - last - 1 if seq > last >= 0 else 0
        self.last_frame_s = now_s
        now_ns = self.now_ns = self.clock.time(frame)
        begin: Literal["loop"] | None = "loop" if frame.begins else None
        return self.tracks, now_ns - self.paused_ns, missed, begin, frame.width, frame.height, frame.roi

    def pass_over(self, frame: Frame, now_s: float) -> None:
        """A frame that the network did not look at: what stood still is taken to stand where it stood, and what moves
        to go on."""
        self.last_seq, self.last_frame_s = frame.seq, now_s
        now_ns = self.clock.time(frame)
        if self.now_ns and frame.view is not None and frame.view.paused:
            self.paused_ns += now_ns - self.now_ns
            self.tracks.pause((now_ns - self.now_ns) / 1e9)
        self.now_ns = now_ns

    def judge(
        self, seen: Observation, tracked: Tracked, wanted: BoolArray, frame: Frame, now_ns: int
    ) -> list[RuleEvent]:
        """Applies the zones and lines to one frame.

        Args:
            seen: the tracker's input; its time without that in which the network did not look.
            tracked: the tracker's output.
            wanted: (N,) boxes of classes that count as detections.
            frame: the frame.
            now_ns: its time.
        """
        assert self.rules is not None
        self.last_wall_ns = frame.wall_ns
        kept = np.nonzero((tracked.id > 0) & wanted)[0]
        roi = frame.roi
        return self.rules.frame(
            TrackedFrame(
                now_ns, frame.wall_ns, frame.epoch, frame.seq, frame.width, frame.height,
                tracked.id[kept], tracked.confirmed[kept], seen.xyxy[kept], seen.score[kept], tracked.class_id[kept],
                [(end.id, end.reason) for end in tracked.ended],
                None if roi is None else (roi.x, roi.y, roi.x + roi.width, roi.y + roi.height),
            )
        )  # fmt: skip
