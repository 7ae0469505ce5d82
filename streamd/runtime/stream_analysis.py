"""The analysis of one stream: its tracks, its rules, and when its frames were captured."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from streamd.analysis.rules import RuleEvent, TrackedFrame
from streamd.analysis.rules.engine import RuleEngine
from streamd.analysis.tracking import StreamTracks, Tracked
from streamd.analysis.tracking.clock import MediaClock
from streamd.analysis.tracking.observation import FrameFacts
from streamd.analysis.tracking.tracks import TrackIds
from streamd.flow.settings import StreamSettings
from streamd.types import Found, Frame

BoolArray = npt.NDArray[np.bool_]


class StreamAnalysis:
    """The analysis state of one stream. Its methods are called with `lock` held.

    Args:
        settings: settings of the stream.
        labels: labels of the model.
        ids: source of track ids.
        new_id: source of event ids.
        state: state of the rules on another box.
    """

    __slots__ = (
        "_labels", "_new_id", "address", "clock", "last_frame_s", "last_wall_ns", "lock", "rules", "stream", "tracks",
        "unreliable",
    )  # fmt: skip

    def __init__(
        self,
        settings: StreamSettings,
        labels: Sequence[str],
        ids: TrackIds,
        new_id: Callable[[], str],
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self.lock = threading.Lock()
        self.stream = settings.id
        self.clock = MediaClock(settings.live)
        self.tracks = StreamTracks(ids, self.clock)
        self.address = self.tracks.address
        """Of what the compiled step knows of the tracks."""
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
        missed = self.clock.count(frame.seq)
        self.last_frame_s = now_s
        self.clock.time(frame.captured_ns, frame.pts_ns)
        begin: Literal["loop"] | None = "loop" if frame.begins else None
        return self.tracks, self.clock.tracks_ns, missed, begin, frame.width, frame.height, frame.roi

    def pass_over(self, frame: Frame, now_s: float) -> None:
        """A frame that the network did not look at: what stood still is taken to stand where it stood, and what moves
        to go on."""
        clock = self.clock
        self.last_frame_s, before_ns = now_s, clock.now_ns
        clock.count(frame.seq)
        passed_ns = clock.time(frame.captured_ns, frame.pts_ns) - before_ns
        if before_ns and frame.view is not None and frame.view.paused:
            clock.pause(passed_ns)
            self.tracks.pause(passed_ns / 1e9)

    def judge(self, seen: Found, tracked: Tracked, wanted: BoolArray, frame: Frame, now_ns: int) -> list[RuleEvent]:
        """Applies the zones and lines to one frame.

        Args:
            seen: its boxes.
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
