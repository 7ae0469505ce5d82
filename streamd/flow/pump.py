"""What becomes of the frames that a connection of a stream delivers: numbered, counted, put into the stream's ring."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from streamd.flow.camera import CameraWatch
from streamd.flow.contracts import Source
from streamd.flow.glimpse import Glimpse
from streamd.flow.reporter import StatusReporter
from streamd.flow.ring import Closed, Ring
from streamd.flow.threads import NamedThread
from streamd.telemetry.streams import StreamMetrics
from streamd.types import Frame

TELL_QUARANTINE_NS = 1_000_000_000
"""Pictures are withheld for this long before a status reports it: one lost packet in a short GOP is not worth
reporting."""
CHECK_NS = 1_000_000_000
"""Interval of the check whether all frames fail in the stages."""
FEW_ERRORS = 2
"""Frames that may fail in that time without a status."""


class Abandoned(Exception):
    """Ends an abandoned thread."""


class ReaderThread:
    """One thread of a runner, with its source."""

    __slots__ = ("abandoned", "live_since", "source", "thread")

    def __init__(self) -> None:
        self.abandoned = False
        """A call did not return in time: another reader has taken over."""
        self.live_since: float | None = None
        """When its present connection gave its first picture, monotonic seconds."""
        self.source: Source | None = None
        self.thread: NamedThread


class FramePump:
    """Takes the frames of a stream from one connection after the other. For the thread that reads.

    Args:
        ring: receives the frames.
        metrics: the stream's counters.
        reporter: is told what is wrong with a live stream.
        epoch: of the last connection; -1 if there was none.
        seq: number of the next frame.
        glimpse: takes a small picture of each frame; None where nobody needs one.
        health: watches whether the camera can see; None where nobody wants to know.
    """

    def __init__(
        self, ring: Ring[Frame], metrics: StreamMetrics, reporter: StatusReporter, epoch: int, seq: int, *,
        glimpse: Glimpse | None = None, health: CameraWatch | None = None,
    ) -> None:  # fmt: skip
        self.epoch, self.seq = epoch, seq
        self._ring, self._metrics, self._reporter = ring, metrics, reporter
        self._glimpse, self._health = glimpse, health
        self._before = (0, 0, 0, 0)
        """The counters of all earlier connections: corrupt, skipped, lost, jumps of the clock."""
        self._overtaken = self._discarded = 0
        """What was counted of the source's."""
        self._size = (0, 0)
        self._jumps = 0
        self._held_since: int | None = None
        """Since when damaged pictures are withheld, monotonic nanoseconds."""
        self._check_ns = self._published = self._errors = 0
        """When to look whether all frames fail, and what was published and had failed at the last time."""

    def run(self, reader: ReaderThread, source: Source, opened: Callable[[Frame], None]) -> None:
        """Takes all frames of an open connection.

        Args:
            reader: the thread that calls.
            source: the connection.
            opened: called with its first frame.

        Raises:
            SourceError: it failed.
            Closed: the stream was stopped.
            Abandoned: another thread reads the stream now.
        """
        if reader.abandoned:
            raise Abandoned
        self._begin(source)
        frames = source.frames()
        try:
            self._take(reader, source, frames, opened)
        finally:
            if (close := getattr(frames, "close", None)) is not None:
                close()  # what it has read beyond is counted now
            if not reader.abandoned:
                self._left_out(source)
                self._count(source)
        if reader.abandoned:
            raise Abandoned

    def _take(
        self, reader: ReaderThread, source: Source, frames: Iterator[Frame], opened: Callable[[Frame], None]
    ) -> None:
        metrics, ring, glimpse, health = self._metrics, self._ring, self._glimpse, self._health
        for frame in frames:
            if reader.abandoned:
                raise Abandoned
            if reader.live_since is None:
                opened(frame)
                self._size = (frame.width, frame.height)
            if source.overtaken != self._overtaken:
                self._left_out(source)
            frame.epoch = self.epoch
            frame.seq = self.seq
            self.seq += 1
            metrics.received += 1
            metrics.last_frame_wall = time.time()  # not frame.wall_ns: a camera's clock may be wrong
            self._count(source)
            self._watch(source, frame)
            if frame.quarantined:
                self._withhold(frame.captured_ns)
                del frame
                continue
            self._held_since = None
            if health is not None:
                health.frame(frame)
            if glimpse is not None:
                glimpse.frame(frame)
            try:
                ring.put(frame)
            except Closed:
                metrics.drop("shutdown")
                raise
            del frame  # otherwise the picture stays allocated while the source waits for the next one

    def _left_out(self, source: Source) -> None:
        """Frames that were captured and never decoded, or not given out: subscribers see the gap in `seq`."""
        behind, stopped = source.overtaken - self._overtaken, source.discarded - self._discarded
        self._overtaken, self._discarded = source.overtaken, source.discarded
        self.seq += behind + stopped
        self._metrics.received += behind + stopped
        if behind:
            self._metrics.drop("behind", behind)
        if stopped:
            self._metrics.drop("shutdown", stopped)

    def _begin(self, source: Source) -> None:
        metrics = self._metrics
        self._overtaken, self._discarded = source.overtaken, source.discarded
        self._before = (metrics.corrupt, metrics.skipped, metrics.lost, metrics.clock_jumps)
        self._held_since, self._jumps, self._check_ns = None, 0, 0
        self._published, self._errors = metrics.published, metrics.dropped.get("frame_error", 0)

    def _count(self, source: Source) -> None:
        """Adds this connection's counters to the totals from before it."""
        metrics, clock = self._metrics, source.clock
        corrupt, skipped, lost, jumps = self._before
        metrics.corrupt = corrupt + source.corrupt
        metrics.skipped = skipped + source.skipped
        metrics.lost = lost + source.lost
        metrics.clock_jumps = jumps + clock.jumps
        metrics.clock_offset_s, metrics.clock_drift = clock.offset_s, clock.drift

    def _watch(self, source: Source, frame: Frame) -> None:
        """Reports what is wrong with the stream, and what no longer is."""
        reporter, now = self._reporter, frame.captured_ns
        if reporter.troubles:
            reporter.calm(now)
        if frame.begins and source.codec:
            reporter.recoded(source.codec, now)
        if source.clock.jumps != self._jumps:
            self._jumps = source.clock.jumps
            reporter.trouble("clock_jump", "the camera's clock jumped or stood still", now)
        if (frame.width, frame.height) != self._size:
            was, self._size = self._size, (frame.width, frame.height)
            reporter.resized(*self._size)
            detail = f"was {was[0]} x {was[1]}, is {frame.width} x {frame.height} pixels"
            reporter.trouble("size_changed", detail, now)
        if now >= self._check_ns:
            metrics = self._metrics
            failed = metrics.dropped.get("frame_error", 0) - self._errors
            if failed >= FEW_ERRORS and metrics.published == self._published:
                reporter.trouble("unsupported", f"no picture can be processed: {metrics.frame_error}", now)
            self._check_ns, self._published, self._errors = now + CHECK_NS, metrics.published, self._errors + failed

    def _withhold(self, now: int) -> None:
        self._metrics.drop("quarantine")
        if self._held_since is None:
            self._held_since = now
        elif now - self._held_since >= TELL_QUARANTINE_NS:
            self._reporter.trouble("corrupt", "damaged pictures are withheld until the next clean key frame", now)
