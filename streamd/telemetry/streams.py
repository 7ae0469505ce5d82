"""The counters of each stream, and the metrics that show them.

Counters that must add up exactly (received = published + dropped + in flight) are plain integers with one writer each,
read at scrape time, so the hot path needs no lock for them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from streamd.telemetry.families import Values, counter, gauge
from streamd.types import StreamCounts, StreamState

STATES: tuple[StreamState, ...] = ("CONNECTING", "LIVE", "BACKOFF", "ENDED", "FAILED")
HEALTH_STATES = ("covered", "dark", "overexposed", "blurred", "frozen", "moved", "no_signal_picture")
"""See `analysis.glance.health.STATES`."""

_NO_MISS = ("quarantine", "shutdown")
"""Reasons for drops that do not depend on the daemon's speed."""


class StreamMetrics:
    """The counters of one stream. Each field has one writing thread; any thread may read."""

    __slots__ = (
        "_drop_lock",
        "behind_s",
        "camera_health",
        "clock_drift",
        "clock_jumps",
        "clock_offset_s",
        "codec",
        "corrupt",
        "decoder",
        "degraded",
        "dropped",
        "epoch",
        "failures",
        "frame_error",
        "invalid_boxes",
        "last_frame_wall",
        "late",
        "looked",
        "lost",
        "max_fps",
        "objective_s",
        "objective_share",
        "passed",
        "published",
        "received",
        "reconnects",
        "removed",
        "sensitivity",
        "skipped",
        "state",
        "stream",
        "threads_abandoned",
        "threads_stuck",
    )

    def __init__(self, stream: str) -> None:
        self.stream = stream
        self.received = 0
        """Frames numbered at capture; written by the stream's runner."""
        self.published = 0
        """Frames handed to the sinks, looked at or not; written by the postprocess stage."""
        self.looked: dict[str, int] = {}
        """Of a stream that is not always looked at: published frames that the network looked at, by reason; written by
        the postprocess stage."""
        self.passed: dict[str, int] = {}
        """And those that it did not look at."""
        self.sensitivity: Callable[[], float | None] | None = None
        """Of its motion; None where it is always looked at."""
        self.objective_s: float | None = None
        """The latency objective: seconds from capture to detections, and the fraction of frames that must meet it;
        None if there is none."""
        self.objective_share = 0.0
        self.late = 0
        """Published frames that missed the objective; written by the postprocess stage."""
        self.behind_s: float | None = None
        """How much later the live stream is read than it could be, in seconds; None if unknown."""
        self.camera_health: tuple[str, ...] | None = None
        """Why the camera cannot see; None if nobody watches. Replaced, never changed."""
        self.removed = False
        """No longer in the configuration: its counters stay, but its current state is no longer exported."""
        self.skipped = 0
        """Frames decoded but skipped (max_fps); never numbered, so not dropped."""
        self.corrupt = 0
        """Packets or frames that the decoder rejected; never numbered."""
        self.lost = 0
        """Lost RTP packets."""
        self.clock_jumps = 0
        self.clock_offset_s: float | None = None
        """Camera's wall clock minus arrival; None if the camera sends no time."""
        self.clock_drift: float | None = None
        """Seconds that the camera's media clock gains per second; None until known."""
        self.reconnects = 0
        self.failures: dict[str, int] = {}
        """Failures by reason; written by the stream's runner."""
        self.invalid_boxes: dict[str, int] = {}
        """Boxes left out because they cannot be, by reason; written by the postprocess stage."""
        self.threads_abandoned = 0
        self.threads_stuck = 0
        """Those of them that still hang."""
        self.dropped: dict[str, int] = {}
        self.state: StreamState = "CONNECTING"
        self.degraded = ""
        """Why the live stream suffers from load (overload, late); empty if it does not."""
        self.max_fps: float | None = None
        """The configured limit."""
        self.codec = ""
        self.decoder = ""
        """software or nvdec; empty until the stream is live for the first time."""
        self.last_frame_wall = 0.0
        self.frame_error = ""
        """Why the last frame that could not be processed could not be; written by the preprocess stage."""
        self._drop_lock = threading.Lock()

    def drop(self, reason: str, count: int = 1) -> None:
        """Counts numbered frames that will not be published. Any thread."""
        with self._drop_lock:
            self.dropped[reason] = self.dropped.get(reason, 0) + count

    def resume(self, counts: StreamCounts) -> None:
        """Continues from `counts`, the counters of a process that has ended. Call before the first frame."""
        self.received, self.published, self.reconnects = counts.received, counts.published, counts.reconnects
        self.dropped = dict(counts.dropped)

    def look(self, why: str) -> None:
        """Counts a published frame that the network looked at. Postprocess stage only."""
        self.looked[why] = self.looked.get(why, 0) + 1

    def pass_over(self, why: str) -> None:
        """Counts a published frame that the network did not look at. Postprocess stage only."""
        self.passed[why] = self.passed.get(why, 0) + 1

    def fail(self, reason: str) -> None:
        """Counts one failure of the stream. Runner's thread only."""
        self.failures[reason] = self.failures.get(reason, 0) + 1

    def reject(self, reasons: Mapping[str, int]) -> None:
        """Counts boxes of a frame that cannot be. Postprocess stage only."""
        for reason, count in reasons.items():
            self.invalid_boxes[reason] = self.invalid_boxes.get(reason, 0) + count

    def objective(self) -> tuple[int, int]:
        """Frames covered by the objective, and those of them that missed it: published late, dropped by us, or not
        looked at because of overload.

        Frames dropped because they were damaged or because the stream was stopped count in neither.
        """
        late = self.late  # read before published, so that the part never exceeds the whole
        dropped = sum(n for reason, n in self.counts().dropped.items() if reason not in _NO_MISS)
        return self.published + dropped, late + dropped + self.passed.get("overload", 0)

    def counts(self) -> StreamCounts:
        """A copy for a status message."""
        published = self.published  # read before received, so that the number in flight is never negative
        with self._drop_lock:
            dropped = dict(self.dropped)
        return StreamCounts(self.received, published, dropped, self.reconnects)


class _Reading:
    """One stream at a scrape: its counts are read once, so that they add up."""

    def __init__(self, stream: StreamMetrics) -> None:
        self.of = stream
        self.counts = stream.counts()
        self.objective = stream.objective() if stream.objective_s is not None else None


class _Row(NamedTuple):
    """A metric of every stream."""

    make: Callable[[str, str, str, Values], Metric]
    name: str
    documentation: str
    read: Callable[[_Reading], Values | None]
    """The value, or values by further labels; None where the stream has none now."""
    labels: str = ""
    """The further labels, separated by spaces."""
    present: bool = False
    """Tells of the present: not exported of a stream that was removed."""


def _one_of(names: Iterable[str], *current: str) -> dict[str, float]:
    """1 for the current ones of all names, 0 for the others."""
    return {name: float(name in current) for name in names}


_ROWS = (
    _Row(counter, "streamd_frames_received", "Frames captured.", lambda s: s.counts.received),
    _Row(counter, "streamd_frames_published", "Frames handed to the sinks.", lambda s: s.counts.published),
    _Row(counter, "streamd_frames_dropped", "Captured frames never published.", lambda s: s.counts.dropped, "reason"),
    _Row(
        counter, "streamd_frames_skipped", "Frames skipped by max_fps before they were numbered.",
        lambda s: s.of.skipped,
    ),
    _Row(
        counter, "streamd_frames_corrupt", "Packets or frames that the decoder rejected.", lambda s: s.of.corrupt
    ),
    _Row(counter, "streamd_rtp_packets_lost", "Lost RTP packets, as reported by FFmpeg.", lambda s: s.of.lost),
    _Row(
        counter, "streamd_stream_clock_jumps",
        "Number of times a camera clock jumped forward, went back or stood still.", lambda s: s.of.clock_jumps,
    ),
    _Row(
        gauge, "streamd_stream_clock_offset_seconds",
        "Camera's wall clock (RTCP sender reports) minus arrival; absent if the camera sends no time.",
        lambda s: s.of.clock_offset_s, present=True,
    ),
    _Row(
        gauge, "streamd_stream_clock_drift_ratio",
        "Seconds that the camera's media clock gains per second; absent for the first two minutes.",
        lambda s: s.of.clock_drift, present=True,
    ),
    _Row(
        gauge, "streamd_stream_behind_seconds",
        "How much later frames are read than they could be: than when the connection was best, than their pace (HLS), "
        "or at least (motion JPEG over HTTP); absent if the stream is down or it cannot be told.",
        lambda s: s.of.behind_s, present=True,
    ),
    _Row(counter, "streamd_stream_reconnects", "Number of reconnections.", lambda s: s.counts.reconnects),
    _Row(
        counter, "streamd_stream_failures", "Failures of a stream, including those it survived, by reason.",
        lambda s: s.of.failures.copy(), "reason",
    ),
    _Row(
        counter, "streamd_invalid_boxes",
        "Boxes left out because they cannot be: not_finite, score (above 1), size (none or negative), outside.",
        lambda s: s.of.invalid_boxes.copy(), "reason",
    ),
    _Row(
        counter, "streamd_stream_threads_abandoned", "Threads abandoned in a call that did not return.",
        lambda s: s.of.threads_abandoned,
    ),
    _Row(
        gauge, "streamd_stream_threads_stuck", "Abandoned threads that still hang.", lambda s: s.of.threads_stuck
    ),
    _Row(
        gauge, "streamd_stream_state", "1 for the current state of the stream, 0 for the others.",
        lambda s: _one_of(STATES, s.of.state), "state", present=True,
    ),
    _Row(
        gauge, "streamd_stream_degraded",
        "1 while the live stream suffers from load: overload (frames are dropped), late (its objective is missed), "
        "behind (it is read too slowly).",
        lambda s: _one_of(("overload", "late", "behind"), s.of.degraded), "reason", present=True,
    ),
    _Row(
        gauge, "streamd_stream_max_fps", "The stream's max_fps; absent if it has none.", lambda s: s.of.max_fps,
        present=True,
    ),
    _Row(
        gauge, "streamd_last_frame_timestamp_seconds", "Unix time of the newest captured frame.",
        lambda s: s.of.last_frame_wall, present=True,
    ),
    _Row(
        gauge, "streamd_stream_info", "Always 1; the labels describe the stream.",
        lambda s: {(s.of.codec, s.of.decoder): 1.0} if s.of.decoder else None, "codec decoder", present=True,
    ),
    _Row(
        counter, "streamd_objective_frames", "Frames covered by the stream's latency objective.",
        lambda s: s.objective[0] if s.objective is not None else None, present=True,
    ),
    _Row(
        counter, "streamd_objective_missed",
        "Frames covered by the objective that were published too late or dropped.",
        lambda s: s.objective[1] if s.objective is not None else None, present=True,
    ),
    _Row(
        gauge, "streamd_objective_latency_seconds",
        "The stream's objective: largest time from reading a frame's packet to its detections.",
        lambda s: s.of.objective_s, present=True,
    ),
    _Row(
        gauge, "streamd_objective_ratio", "The stream's objective: fraction of frames that must be in time.",
        lambda s: s.of.objective_share if s.objective is not None else None, present=True,
    ),
    _Row(
        counter, "streamd_frames_looked",
        "Published frames that the network looked at, of streams with look.when: motion, by reason.",
        lambda s: s.of.looked.copy(), "why",
    ),
    _Row(
        counter, "streamd_frames_glanced",
        "Published frames that the network did not look at, by reason (still, rate, busy, overload, followed).",
        lambda s: s.of.passed.copy(), "why",
    ),
    _Row(
        gauge, "streamd_look_sensitivity",
        "How little motion is enough, 1 to 10; found by itself with look.sensitivity: auto.",
        lambda s: s.of.sensitivity() if s.of.sensitivity is not None else None, present=True,
    ),
    _Row(
        gauge, "streamd_camera_health",
        "1 while the camera cannot see for this reason (covered, dark, overexposed, blurred, frozen, moved, "
        "no_signal_picture); absent for streams without camera_health.",
        lambda s: _one_of(HEALTH_STATES, *s.of.camera_health) if s.of.camera_health is not None else None, "state",
        present=True,
    ),
)  # fmt: skip


class StreamCollector(Collector):
    """The metrics of every stream, as they are at a scrape.

    Args:
        streams: the counters of all streams so far.
    """

    def __init__(self, streams: Callable[[], Iterable[StreamMetrics]]) -> None:
        self._streams = streams

    def collect(self) -> Iterable[Metric]:
        """See `Collector`."""
        readings = [_Reading(stream) for stream in self._streams()]
        for row in _ROWS:
            values: dict[tuple[str, ...], float] = {}
            for reading in readings:
                value = None if row.present and reading.of.removed else row.read(reading)
                if isinstance(value, Mapping):
                    for key, each in value.items():
                        labels = (reading.of.stream, key) if isinstance(key, str) else (reading.of.stream, *key)
                        values[labels] = each
                elif value is not None:
                    values[(reading.of.stream,)] = value
            yield row.make(row.name, row.documentation, f"stream {row.labels}", values)
        opened = {"software": 0, "nvdec": 0}
        for stream in (reading.of for reading in readings):
            if stream.decoder and not stream.removed:
                opened[stream.decoder] = opened.get(stream.decoder, 0) + (stream.state == "LIVE")
        yield gauge("streamd_decoder_sessions", "Open decoders of live streams.", "decoder", opened)
