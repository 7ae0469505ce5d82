"""Every metric in one place, on one registry that the caller provides. `streams` has those of each stream."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from streamd.telemetry.deliveries import Deliveries
from streamd.telemetry.families import counter
from streamd.telemetry.outlet import lines_lost
from streamd.telemetry.streams import StreamCollector, StreamMetrics
from streamd.telemetry.tally import Histograms, LabelCounts

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


class _LogCollector(Collector):
    def collect(self) -> Iterable[Metric]:
        text = "Log lines dropped because nothing reads standard error any more."
        yield counter("streamd_log_lines_lost", text, "", lines_lost())


class Metrics:
    """All metrics of one daemon on one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._streams: dict[str, StreamMetrics] = {}
        self._lock = threading.Lock()
        registry.register(StreamCollector(self.streams))
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
            "1 while the sink is open, 0 while it is broken, cannot write, or its receiver cannot be reached.",
            ["sink"],
            registry=registry,
        )
        self.sink_relay = Gauge(
            "streamd_sink_relay_seconds",
            "How long the latest message waited on its way from its worker to the sink; 0 while none comes.",
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
