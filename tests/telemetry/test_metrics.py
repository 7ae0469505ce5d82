"""The metric table: names, labels and what a scrape looks like, held to Prometheus's own rules."""

from __future__ import annotations

import re
import threading
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from streamd.analysis.glance.health import STATES as FAULTS
from streamd.errors import SOURCE_REASONS
from streamd.events.cursors import CursorCounts
from streamd.telemetry.metrics import Metrics
from streamd.telemetry.streams import HEALTH_STATES, STATES

WANTED = {
    "streamd_frames_received", "streamd_frames_dropped", "streamd_frames_published", "streamd_frames_skipped",
    "streamd_frames_corrupt", "streamd_stage_duration_seconds", "streamd_capture_to_publish_seconds",
    "streamd_queue_depth", "streamd_batch_size", "streamd_slots_in_flight", "streamd_stream_state",
    "streamd_stream_degraded", "streamd_stream_max_fps",
    "streamd_stream_reconnects", "streamd_last_frame_timestamp_seconds", "streamd_detections",
    "streamd_stream_failures", "streamd_stream_threads_abandoned", "streamd_stream_threads_stuck",
    "streamd_sink_messages", "streamd_sink_dropped", "streamd_sink_errors", "streamd_sink_up",
    "streamd_sink_relay_seconds", "streamd_build_info",
    "streamd_sink_events_accepted", "streamd_sink_events_settled", "streamd_sink_events_queued",
    "streamd_sink_subscribers", "streamd_sink_refused",
    "streamd_rtp_packets_lost", "streamd_stream_clock_jumps", "streamd_stream_clock_offset_seconds",
    "streamd_stream_clock_drift_ratio", "streamd_stream_behind_seconds",
    "streamd_stream_info", "streamd_decoder_sessions",
    "streamd_device_duration_seconds", "streamd_device_memory_bytes",
    "streamd_objective_frames", "streamd_objective_missed", "streamd_objective_latency_seconds",
    "streamd_objective_ratio", "streamd_config_reloads", "streamd_config_last_reload_success",
    "streamd_bundles_written", "streamd_invalid_boxes", "streamd_log_lines_lost", "streamd_worker_up",
    "streamd_worker_restarts", "streamd_otlp_exports", "streamd_camera_health",
    "streamd_frames_looked", "streamd_frames_glanced", "streamd_look_sensitivity",
}  # fmt: skip
ALLOWED_LABELS = {
    "stream",
    "stage",
    "sink",
    "outcome",
    "reason",
    "state",
    "queue",
    "label",
    "le",
    "version",
    "codec",
    "decoder",
    "kind",
    "device",
    "backend",
    "model",
    "result",
    "signal",
    "worker",
}


def filled() -> CollectorRegistry:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    stream = metrics.stream("gate")
    stream.received, stream.published = 10, 7
    stream.drop("ring_full", 2)
    stream.state, stream.camera_health = "LIVE", ("covered",)
    stream.codec, stream.decoder = "h264", "nvdec"
    metrics.stage_duration.tally("infer").observe(0.01)
    metrics.capture_to_publish.tally("gate").observe(0.03)
    metrics.detections.of("gate", ['per"son\n'])[0] += 1
    metrics.sink_messages.labels(sink="zmq0").inc()
    metrics.sink_dropped.labels(sink="zmq0", reason="ring_full").inc()
    metrics.sink_errors.labels(sink="zmq0").inc()
    metrics.deliveries.show("mqtt0", lambda: CursorCounts(6, 1, 2, 1, 1, 1))
    metrics.queue_depth.labels(queue="infer").set(1)
    metrics.batch_size.observe(3)
    metrics.build_info.labels(version="1", backend="b", model="m").set(1)
    return registry


def test_the_table_is_complete_and_every_family_is_explained() -> None:
    families = {f.name: f for f in filled().collect() if not f.name.endswith("_created")}
    assert set(families) == WANTED
    assert all(f.documentation.endswith(".") for f in families.values())


def test_names_and_labels_follow_the_conventions() -> None:
    for family in filled().collect():
        assert re.fullmatch(r"streamd_[a-z][a-z_]*", family.name)
        for sample in family.samples:
            assert set(sample.labels) <= ALLOWED_LABELS
            if family.type == "counter":
                assert sample.name.endswith(("_total", "_created"))
        if family.type == "histogram" and ("duration" in family.name or "publish" in family.name):
            assert family.name.endswith("_seconds")


def test_a_scrape_parses_in_both_formats_and_labels_are_escaped() -> None:
    registry = filled()
    # prometheus_client leaves these two without types.
    parse: Any = parse_openmetrics
    expose: Any = generate_openmetrics
    plain = {f.name: f for f in text_string_to_metric_families(generate_latest(registry).decode())}
    opened = {f.name: f for f in parse(expose(registry).decode())}
    assert set(opened) >= WANTED
    for families in (plain, opened):
        labels = [s.labels for f in families.values() for s in f.samples if "label" in s.labels]
        assert labels[0] == {"stream": "gate", "label": 'per"son\n'}


def test_counts_and_states() -> None:
    registry = filled()
    value = registry.get_sample_value
    assert value("streamd_frames_received_total", {"stream": "gate"}) == 10
    assert value("streamd_frames_dropped_total", {"stream": "gate", "reason": "ring_full"}) == 2
    assert value("streamd_stream_info", {"stream": "gate", "codec": "h264", "decoder": "nvdec"}) == 1
    assert value("streamd_decoder_sessions", {"decoder": "nvdec"}) == 1
    states = [value("streamd_stream_state", {"stream": "gate", "state": s}) for s in STATES]
    assert states == [1.0 if s == "LIVE" else 0.0 for s in STATES]
    assert HEALTH_STATES == FAULTS, "the metric names what camera health reports"
    faults = [value("streamd_camera_health", {"stream": "gate", "state": s}) for s in HEALTH_STATES]
    assert faults == [1.0 if s == "covered" else 0.0 for s in HEALTH_STATES]


def test_the_latency_buckets_are_close_around_one_frame_at_25_fps() -> None:
    samples = [
        s for f in filled().collect() for s in f.samples if s.name == "streamd_capture_to_publish_seconds_bucket"
    ]
    bounds = [float(s.labels["le"]) for s in samples]
    near = [b for b in bounds if 0.03 <= b <= 0.05]
    assert len(near) >= 4
    assert bounds == sorted(bounds)


def test_what_misses_an_objective() -> None:
    registry = CollectorRegistry()
    stream = Metrics(registry).stream("gate")
    stream.published, stream.late = 90, 4
    for reason, count in {"too_old": 3, "ring_full": 2, "frame_error": 1, "quarantine": 50, "shutdown": 7}.items():
        stream.drop(reason, count)
    assert registry.get_sample_value("streamd_objective_frames_total", {"stream": "gate"}) is None
    stream.objective_s, stream.objective_share = 0.2, 0.99
    names = ("frames_total", "missed_total", "latency_seconds", "ratio")
    values = [registry.get_sample_value(f"streamd_objective_{name}", {"stream": "gate"}) for name in names]
    assert values == [96, 10, 0.2, 0.99]


def test_a_removed_stream_keeps_its_counters_and_tells_no_state() -> None:
    registry = CollectorRegistry()
    stream = Metrics(registry).stream("gate")
    stream.received, stream.decoder = 3, "software"
    stream.drop("too_old", 3)
    stream.removed = True
    names = {s.name for f in registry.collect() for s in f.samples if s.labels.get("stream") == "gate"}
    assert {"streamd_frames_received_total", "streamd_frames_published_total", "streamd_frames_dropped_total"} <= names
    assert not names & {"streamd_stream_state", "streamd_last_frame_timestamp_seconds", "streamd_stream_info"}


def test_drops_are_counted_from_any_thread() -> None:
    stream = Metrics(CollectorRegistry()).stream("s")

    def work() -> None:
        for _ in range(2000):
            stream.drop("ring_full")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stream.counts().dropped == {"ring_full": 8000}


@pytest.mark.parametrize("reason", sorted(SOURCE_REASONS))
def test_reasons_are_fit_for_labels(reason: str) -> None:
    assert re.fullmatch(r"[a-z_]{2,20}", reason)
