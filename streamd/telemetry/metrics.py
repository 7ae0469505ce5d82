"""Every metric in one table, on one registry that the caller provides.

Counters that must add up exactly (received = published + dropped + in flight) are plain integers with one writer each,
read at scrape time, so the hot path needs no lock for them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from streamd.telemetry.deliveries import Deliveries
from streamd.telemetry.outlet import lines_lost
from streamd.telemetry.tally import Histograms, LabelCounts
from streamd.types import StreamCounts, StreamState

STATES: tuple[StreamState, ...] = ("CONNECTING", "LIVE", "BACKOFF", "ENDED", "FAILED")
HEALTH_STATES = ("covered", "dark", "overexposed", "blurred", "frozen", "moved", "no_signal_picture")
"""See `analysis.glance.health.STATES`."""
STAGES = ("decode", "queue", "preprocess", "infer", "postprocess")

_STAGE_BUCKETS = (
    0.0002,
    0.0005,
    0.001,
    0.002,
    0.003,
    0.005,
    0.0075,
    0.01,
    0.015,
    0.02,
    0.03,
    0.05,
    0.1,
    0.25,
    1.0,
)
# Dense around 40 ms, one frame interval at 25 fps, a common objective for live streams.
_LATENCY_BUCKETS = (
    0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.045, 0.05, 0.06, 0.08, 0.1,
    0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0,
)  # fmt: skip


_NO_MISS = ("quarantine", "shutdown")
"""Reasons for drops that do not depend on the daemon's speed."""


class StreamMetrics:
    """The counters of one stream. Each field has one writing thread; any thread may read."""

    __slots__ = (
        "_drop_lock",
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
        """Frames covered by the objective, and those of them that missed it: published late, or dropped by us.

        Frames dropped because they were damaged or because the stream was stopped count in neither.
        """
        late = self.late  # read before published, so that the part never exceeds the whole
        dropped = sum(n for reason, n in self.counts().dropped.items() if reason not in _NO_MISS)
        return self.published + dropped, late + dropped

    def counts(self) -> StreamCounts:
        """A copy for a status message."""
        published = self.published  # read before received, so that the number in flight is never negative
        with self._drop_lock:
            dropped = dict(self.dropped)
        return StreamCounts(self.received, published, dropped, self.reconnects)


class _LogCollector(Collector):
    def collect(self) -> Iterable[Metric]:
        lost = CounterMetricFamily(
            "streamd_log_lines_lost", "Log lines dropped because nothing reads standard error any more."
        )
        lost.add_metric([], lines_lost())
        yield lost


class _StreamCollector(Collector):
    def __init__(self, streams: Callable[[], Iterable[StreamMetrics]]) -> None:
        self._streams = streams

    def collect(self) -> Iterable[Metric]:
        received = CounterMetricFamily("streamd_frames_received", "Frames captured.", labels=["stream"])
        published = CounterMetricFamily("streamd_frames_published", "Frames handed to the sinks.", labels=["stream"])
        dropped = CounterMetricFamily(
            "streamd_frames_dropped", "Captured frames never published.", labels=["stream", "reason"]
        )
        skipped = CounterMetricFamily(
            "streamd_frames_skipped",
            "Frames skipped by max_fps before they were numbered.",
            labels=["stream"],
        )
        corrupt = CounterMetricFamily(
            "streamd_frames_corrupt", "Packets or frames that the decoder rejected.", labels=["stream"]
        )
        lost = CounterMetricFamily(
            "streamd_rtp_packets_lost", "Lost RTP packets, as reported by FFmpeg.", labels=["stream"]
        )
        jumps = CounterMetricFamily(
            "streamd_stream_clock_jumps",
            "Number of times a camera clock jumped forward, went back or stood still.",
            labels=["stream"],
        )
        offset = GaugeMetricFamily(
            "streamd_stream_clock_offset_seconds",
            "Camera's wall clock (RTCP sender reports) minus arrival; absent if the camera sends no time.",
            labels=["stream"],
        )
        drift = GaugeMetricFamily(
            "streamd_stream_clock_drift_ratio",
            "Seconds that the camera's media clock gains per second; absent for the first two minutes.",
            labels=["stream"],
        )
        reconnects = CounterMetricFamily("streamd_stream_reconnects", "Number of reconnections.", labels=["stream"])
        failures = CounterMetricFamily(
            "streamd_stream_failures",
            "Failures of a stream, including those it survived, by reason.",
            labels=["stream", "reason"],
        )
        invalid = CounterMetricFamily(
            "streamd_invalid_boxes",
            "Boxes left out because they cannot be: not_finite, score (above 1), size (none or negative), outside.",
            labels=["stream", "reason"],
        )
        abandoned = CounterMetricFamily(
            "streamd_stream_threads_abandoned",
            "Threads abandoned in a call that did not return.",
            labels=["stream"],
        )
        stuck = GaugeMetricFamily(
            "streamd_stream_threads_stuck", "Abandoned threads that still hang.", labels=["stream"]
        )
        state = GaugeMetricFamily(
            "streamd_stream_state",
            "1 for the current state of the stream, 0 for the others.",
            labels=["stream", "state"],
        )
        last = GaugeMetricFamily(
            "streamd_last_frame_timestamp_seconds",
            "Unix time of the newest captured frame.",
            labels=["stream"],
        )
        info = GaugeMetricFamily(
            "streamd_stream_info", "Always 1; the labels describe the stream.", labels=["stream", "codec", "decoder"]
        )
        sessions = GaugeMetricFamily("streamd_decoder_sessions", "Open decoders of live streams.", labels=["decoder"])
        held = CounterMetricFamily(
            "streamd_objective_frames", "Frames covered by the stream's latency objective.", labels=["stream"]
        )
        missed = CounterMetricFamily(
            "streamd_objective_missed",
            "Frames covered by the objective that were published too late or dropped.",
            labels=["stream"],
        )
        objective_s = GaugeMetricFamily(
            "streamd_objective_latency_seconds",
            "The stream's objective: largest time from reading a frame's packet to its detections.",
            labels=["stream"],
        )
        objective_share = GaugeMetricFamily(
            "streamd_objective_ratio",
            "The stream's objective: fraction of frames that must be in time.",
            labels=["stream"],
        )
        degraded = GaugeMetricFamily(
            "streamd_stream_degraded",
            "1 while the live stream suffers from load: overload (frames are dropped), late (its objective is missed).",
            labels=["stream", "reason"],
        )
        max_fps = GaugeMetricFamily(
            "streamd_stream_max_fps", "The stream's max_fps; absent if it has none.", labels=["stream"]
        )
        looked = CounterMetricFamily(
            "streamd_frames_looked",
            "Published frames that the network looked at, of streams with look.when: motion, by reason.",
            labels=["stream", "why"],
        )
        passed = CounterMetricFamily(
            "streamd_frames_glanced",
            "Published frames that it did not look at, by reason (still, rate, busy).",
            labels=["stream", "why"],
        )
        sensitivity = GaugeMetricFamily(
            "streamd_look_sensitivity",
            "How little motion is enough, 1 to 10; found by itself with look.sensitivity: auto.",
            labels=["stream"],
        )
        health = GaugeMetricFamily(
            "streamd_camera_health",
            "1 while the camera cannot see for this reason (covered, dark, overexposed, blurred, frozen, moved, "
            "no_signal_picture); absent for streams without camera_health.",
            labels=["stream", "state"],
        )
        open_decoders = {"software": 0, "nvdec": 0}
        for s in self._streams():
            labels = [s.stream]
            if s.decoder and not s.removed:
                info.add_metric([s.stream, s.codec, s.decoder], 1.0)
                open_decoders[s.decoder] = open_decoders.get(s.decoder, 0) + (s.state == "LIVE")
            counts = s.counts()
            received.add_metric(labels, counts.received)
            published.add_metric(labels, counts.published)
            for reason, count in counts.dropped.items():
                dropped.add_metric([s.stream, reason], count)
            skipped.add_metric(labels, s.skipped)
            corrupt.add_metric(labels, s.corrupt)
            lost.add_metric(labels, s.lost)
            jumps.add_metric(labels, s.clock_jumps)
            reconnects.add_metric(labels, counts.reconnects)
            for reason, count in list(s.failures.items()):
                failures.add_metric([s.stream, reason], count)
            for reason, count in list(s.invalid_boxes.items()):
                invalid.add_metric([s.stream, reason], count)
            for family_of, by_why in ((looked, s.looked), (passed, s.passed)):
                for why, count in list(by_why.items()):
                    family_of.add_metric([s.stream, why], count)
            abandoned.add_metric(labels, s.threads_abandoned)
            stuck.add_metric(labels, s.threads_stuck)
            if s.removed:
                continue
            for family, value in ((offset, s.clock_offset_s), (drift, s.clock_drift)):
                if value is not None:
                    family.add_metric(labels, value)
            if s.objective_s is not None:
                of, misses = s.objective()
                held.add_metric(labels, of)
                missed.add_metric(labels, misses)
                objective_s.add_metric(labels, s.objective_s)
                objective_share.add_metric(labels, s.objective_share)
            if s.sensitivity is not None and (level := s.sensitivity()) is not None:
                sensitivity.add_metric(labels, level)
            if s.max_fps is not None:
                max_fps.add_metric(labels, s.max_fps)
            for why in ("overload", "late"):
                degraded.add_metric([s.stream, why], 1.0 if s.degraded == why else 0.0)
            if (cannot := s.camera_health) is not None:
                for fault in HEALTH_STATES:
                    health.add_metric([s.stream, fault], 1.0 if fault in cannot else 0.0)
            for each in STATES:
                state.add_metric([s.stream, each], 1.0 if s.state == each else 0.0)
            last.add_metric(labels, s.last_frame_wall)
        for name, count in open_decoders.items():
            sessions.add_metric([name], count)
        return (
            received, published, dropped, skipped, corrupt, lost, jumps, offset, drift, reconnects, failures,
            invalid, abandoned, stuck, state, degraded, max_fps, last, info, sessions, held, missed, objective_s,
            objective_share, looked, passed, sensitivity, health,
        )  # fmt: skip


class Metrics:
    """All metrics of one daemon on one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._streams: dict[str, StreamMetrics] = {}
        self._lock = threading.Lock()
        registry.register(_StreamCollector(self.streams))
        registry.register(_LogCollector())
        self.stage_duration = Histograms(
            "streamd_stage_duration_seconds",
            "Time that a frame's batch spent in a stage (queue: time that a frame waited in its ring).",
            "stage",
            _STAGE_BUCKETS,
            registry,
        )
        self.device_duration = Histogram(
            "streamd_device_duration_seconds",
            "Time that the device spent on a batch, by its own clock (GPU only).",
            ["stage"],
            buckets=_STAGE_BUCKETS,
            registry=registry,
        )
        self.device_memory = Gauge(
            "streamd_device_memory_bytes",
            "Memory used by the engine (buffers, scratch, pinned) and the device memory (GPU only).",
            ["device", "kind"],
            registry=registry,
        )
        self.capture_to_publish = Histograms(
            "streamd_capture_to_publish_seconds",
            "Time from reading a frame's packet to its detections leaving the postprocess stage.",
            "stream",
            _LATENCY_BUCKETS,
            registry,
        )
        self.queue_depth = Gauge("streamd_queue_depth", "Items waiting in a ring.", ["queue"], registry=registry)
        self.batch_size = Histogram(
            "streamd_batch_size", "Frames a batch.", buckets=(1, 2, 4, 8, 16, 32, 64, 128), registry=registry
        )
        self._in_flight: list[Callable[[], int]] = []
        self.slots_in_flight = Gauge(
            "streamd_slots_in_flight", "Batches between preprocess and postprocess.", registry=registry
        )
        self.slots_in_flight.set_function(lambda: sum(count() for count in self._in_flight))
        self.detections = LabelCounts("streamd_detections", "Detections published.", registry)
        self.sink_messages = Counter(
            "streamd_sink_messages", "Messages that a sink has sent.", ["sink"], registry=registry
        )
        self.sink_dropped = Counter(
            "streamd_sink_dropped",
            "Messages that a sink dropped; subscriber_slow: times a subscriber fell behind and lost some.",
            ["sink", "reason"],
            registry=registry,
        )
        self.sink_up = Gauge(
            "streamd_sink_up",
            "1 while the sink is open, 0 while it is broken or its receiver cannot be reached.",
            ["sink"],
            registry=registry,
        )
        self.sink_errors = Counter("streamd_sink_errors", "Failed attempts to send.", ["sink"], registry=registry)
        self.deliveries = Deliveries(registry)
        self.sink_subscribers = Gauge(
            "streamd_sink_subscribers", "Connections to a sink that binds a ZeroMQ endpoint.", ["sink"],
            registry=registry,
        )  # fmt: skip
        self.sink_refused = Counter(
            "streamd_sink_refused", "Subscribers whose connection was closed because of a limit.", ["sink", "reason"],
            registry=registry,
        )  # fmt: skip
        self.otlp_exports = Counter(
            "streamd_otlp_exports",
            "Exports to an OpenTelemetry collector, by signal (metrics, traces) and result (ok, failed).",
            ["signal", "result"],
            registry=registry,
        )
        self.reloads = Counter(
            "streamd_config_reloads", "Configuration reloads, by result.", ["result"], registry=registry
        )
        for result in ("applied", "refused"):
            self.reloads.labels(result=result)
        self.last_reload_success = Gauge(
            "streamd_config_last_reload_success",
            "1 if the most recent reload was applied, 0 if it was rejected.",
            registry=registry,
        )
        self.last_reload_success.set(1)
        self.bundles = Counter(
            "streamd_bundles_written",
            "Bundles written by the flight recorder, by reason.",
            ["reason"],
            registry=registry,
        )
        self.worker_up = Gauge(
            "streamd_worker_up", "1 if all parts of the worker process are running.", ["worker"], registry=registry
        )
        self.worker_restarts = Counter(
            "streamd_worker_restarts", "Number of times a worker process was restarted.", ["worker"], registry=registry
        )
        self.build_info = Gauge(
            "streamd_build_info",
            "Always 1; the labels describe the running software.",
            ["version", "backend", "model"],
            registry=registry,
        )

    def add_in_flight(self, count: Callable[[], int]) -> None:
        """Adds a pipeline whose batches in flight are counted."""
        self._in_flight.append(count)

    def stream(self, stream: str) -> StreamMetrics:
        """The counters of `stream`, created at first use."""
        found = self._streams.get(stream)  # called for every frame: no lock if it exists
        if found is not None:
            return found
        with self._lock:
            return self._streams.setdefault(stream, StreamMetrics(stream))

    def streams(self) -> list[StreamMetrics]:
        """Every stream's counters."""
        with self._lock:
            return list(self._streams.values())
