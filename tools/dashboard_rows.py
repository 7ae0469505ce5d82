"""Rows and panels of the Grafana dashboard, which `build_dashboard.py` writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from streamd.telemetry.streams import STATES

_COLORS: Mapping[str, Any] = {
    "CONNECTING": "yellow",
    "LIVE": "green",
    "BACKOFF": "orange",
    "ENDED": "blue",
    "FAILED": "red",
}
# Every expression begins with these; $stream is left out where the metric has no such label.
_HERE = 'instance=~"$instance"'
_THESE = f'{_HERE},stream=~"$stream"'


@dataclass(frozen=True)
class Panel:
    """One panel. `queries` are (expression, legend)."""

    title: str
    kind: str
    unit: str
    queries: Sequence[tuple[str, str]]
    width: int = 8
    height: int = 8
    note: str = ""
    """Put before the metric's own description."""
    options: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """For fieldConfig.defaults."""


def _rate(metric: str, labels: str = _THESE) -> str:
    return f"rate({metric}{{{labels}}}[$__rate_interval])"


def _quantile(share: float, metric: str, by: str, labels: str) -> str:
    return f"histogram_quantile({share}, sum by (le, {by}) ({_rate(metric + '_bucket', labels)}))"


def _mean(metric: str, by: str, labels: str) -> str:
    total, count = _rate(metric + "_sum", labels), _rate(metric + "_count", labels)
    return f"sum by ({by}) ({total}) / sum by ({by}) ({count})"


def _missed(window: str) -> str:
    """The fraction of frames that miss the stream's objective."""
    missed, all_ = (f"rate(streamd_objective_{name}_total{{{_THESE}}}[{window}])" for name in ("missed", "frames"))
    return f"{missed} / {all_}"


def _steps(*steps: tuple[float | None, str]) -> dict[str, Any]:
    return {
        "color": {"mode": "thresholds"},
        "thresholds": {"mode": "absolute", "steps": [{"value": v, "color": c} for v, c in steps]},
    }


def _stat(
    title: str, expr: str, unit: str, note: str, *steps: tuple[float | None, str], legend: str = "", w: int = 4
) -> Panel:
    options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "graphMode": "area", "colorMode": "value"}
    return Panel(title, "stat", unit, [(expr, legend)], w, 4, note, options, _steps(*(steps or ((None, "text"),))))


def _lines(title: str, unit: str, *queries: tuple[str, str], note: str = "", stack: bool = False, w: int = 8) -> Panel:
    custom: dict[str, Any] = {"lineWidth": 1, "fillOpacity": 20 if stack else 0, "showPoints": "never"}
    custom |= {"stacking": {"mode": "normal"}} if stack else {}
    options = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}}
    return Panel(title, "timeseries", unit, queries, w, 8, note, options, {"custom": custom})


def _states() -> Panel:
    numbered = " or ".join(
        f'streamd_stream_state{{{_THESE},state="{state}"}} * {i}' for i, state in enumerate(STATES, 1)
    )
    mappings: dict[str, Any] = {
        str(i): {"text": state, "color": _COLORS[state], "index": i} for i, state in enumerate(STATES, 1)
    }  # fmt: skip
    return Panel(
        "State of each stream", "state-timeline", "short", [(f"sum by (stream) ({numbered})", "{{stream}}")], 16, 8,
        options={"showValue": "never", "mergeValues": True, "rowHeight": 0.85, "legend": {"displayMode": "list"}},
        defaults={"mappings": [{"type": "value", "options": mappings}], "custom": {"fillOpacity": 85}},
    )  # fmt: skip


LATENCY = "streamd_capture_to_publish_seconds"
DWELL = "streamd_zone_dwell_seconds"
_LOAD, _CAPACITY = (f"streamd_fleet_box_{what}_fps{{{_HERE}}}" for what in ("load", "capacity"))
_DOWN = f'streamd_stream_state{{{_THESE},state=~"CONNECTING|BACKOFF|FAILED"}}'
ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "At a glance",
        (
            _stat(
                "Streams live", f'sum(streamd_stream_state{{{_THESE},state="LIVE"}})', "short", "", (None, "green"), w=3
            ),
            _stat("Streams down", f"sum({_DOWN})", "short", "", (None, "green"), (1, "red"), w=3),
            _stat(
                "Streams degraded", f"sum(streamd_stream_degraded{{{_THESE}}})", "short", "", (None, "green"),
                (1, "orange"), w=3,
            ),
            _stat("Frames published", f"sum({_rate('streamd_frames_published_total')})", "fps", ""),
            _stat(
                "Latency, 99th percentile",
                f"histogram_quantile(0.99, sum by (le) ({_rate(LATENCY + '_bucket')}))", "s", "",
                (None, "green"), (0.1, "yellow"), (0.5, "red"),
            ),
            _stat(
                "Frames dropped",
                f"sum({_rate('streamd_frames_dropped_total')}) / sum({_rate('streamd_frames_received_total')})"
                " or vector(0)", "percentunit", "", (None, "green"), (0.01, "yellow"), (0.1, "red"),
            ),
            _stat(
                "Running since", f"min(process_start_time_seconds{{{_HERE}}}) * 1000", "dateTimeFromNow", "", w=3
            ),
        ),
    ),
    (
        "Streams",
        (
            _states(),
            _lines("Frames published", "fps", (_rate("streamd_frames_published_total"), "{{stream}}")),
            _lines(
                "Cameras that cannot see", "short", (f"streamd_camera_health{{{_THESE}}} > 0", "{{stream}} {{state}}")
            ),
            _lines(
                "Age of the newest frame", "s",
                (f"time() - (streamd_last_frame_timestamp_seconds{{{_THESE}}} > 0)", "{{stream}}"),
            ),
            _lines("Reconnects in 5 minutes", "short", (
                f"increase(streamd_stream_reconnects_total{{{_THESE}}}[5m])", "{{stream}}")),
            _lines("Failures in 5 minutes, by reason", "short", (
                f"sum by (reason) (increase(streamd_stream_failures_total{{{_THESE}}}[5m]))", "{{reason}}")),
            _lines("Hanging threads", "short", (f"streamd_stream_threads_stuck{{{_THESE}}}", "{{stream}}")),
            _lines("Detections", "cps", (
                f"sum by (label) ({_rate('streamd_detections_total')})", "{{label}}"), stack=True),
        ),
    ),
    (
        "Latency",
        (
            Panel(
                "Capture to publish", "heatmap", "s",
                [(f"sum by (le) (increase({LATENCY}_bucket{{{_THESE}}}[$__rate_interval]))", "{{le}}")], 12, 8,
                options={"calculate": False, "color": {"mode": "scheme", "scheme": "Blues"}, "yAxis": {"unit": "s"}},
            ),
            _lines(
                "Capture to publish, 50th and 99th percentile", "s",
                (_quantile(0.5, LATENCY, "stream", _THESE), "{{stream}} p50"),
                (_quantile(0.99, LATENCY, "stream", _THESE), "{{stream}} p99"), w=12,
            ),
            _lines(
                "Objective: share of missed frames", "percentunit",
                (_missed("$__rate_interval"), "{{stream}}"),
                note="Streams with an objective only.",
            ),
            _lines(
                "Objective: burn rate over an hour", "short",
                (f"{_missed('1h')} / (1 - streamd_objective_ratio{{{_THESE}}})", "{{stream}}"),
                note="1: the error budget is exactly used up.",
            ),
            _lines(
                "Where the time goes (mean of each stage)", "s",
                (_mean("streamd_stage_duration_seconds", "stage", _HERE), "{{stage}}"), stack=True,
            ),
            _lines(
                "Stages, 99th percentile", "s",
                (_quantile(0.99, "streamd_stage_duration_seconds", "stage", _HERE), "{{stage}}"),
            ),
            _lines(
                "On the device, 99th percentile", "s",
                (_quantile(0.99, "streamd_device_duration_seconds", "stage", _HERE), "{{stage}}"),
            ),
        ),
    ),
    (
        "Analytics",
        (
            _lines("Tracks", "short", (f"streamd_tracks_active{{{_THESE}}}", "{{stream}}")),
            _lines("Occupancy of zones", "short", (
                f"sum by (stream, zone) (streamd_zone_occupancy{{{_THESE}}})", "{{stream}} {{zone}}")),
            _lines("Time in zones, median of an hour", "s", (
                f"histogram_quantile(0.5, sum by (le, stream, zone) (rate({DWELL}_bucket{{{_THESE}}}[1h])))",
                "{{stream}} {{zone}}")),
            _lines("Line crossings in 5 minutes", "short", (
                f"sum by (stream, line, direction) (increase(streamd_line_crossings_total{{{_THESE}}}[5m]))",
                "{{stream}} {{line}} {{direction}}"), w=12),
            _lines("Events in 5 minutes, by type", "short", (
                f"sum by (stream, type) (increase(streamd_events_total{{{_THESE}}}[5m]))", "{{stream}} {{type}}"),
                w=12),
        ),
    ),
    (
        "Clips and snapshots",
        (
            _lines("Written in 5 minutes", "short",
                   (f"sum by (stream) (increase(streamd_clips_written_total{{{_THESE}}}[5m]))", "{{stream}} clips"),
                   (f"sum by (stream) (increase(streamd_snapshots_written_total{{{_THESE}}}[5m]))",
                    "{{stream}} snapshots")),
            _lines("Failed in 5 minutes, by reason", "short",
                   (f"sum by (reason) (increase(streamd_clips_failed_total{{{_THESE}}}[5m]))", "clips {{reason}}"),
                   (f"sum by (reason) (increase(streamd_snapshots_failed_total{{{_THESE}}}[5m]))",
                    "snapshots {{reason}}")),
            _lines("Can be written and kept", "short",
                   (f"min by (instance) (streamd_media_up{{{_HERE}}})", "{{instance}} written"),
                   (f"min by (instance) (streamd_media_kept{{{_HERE}}})", "{{instance}} kept")),
            _lines("Media folder", "bytes", (f"streamd_media_bytes{{{_HERE}}}", "{{instance}}")),
            _lines("Events whose media were removed in an hour", "short",
                   (f"increase(streamd_media_removed_total{{{_HERE}}}[1h])", "{{instance}}")),
            _lines("Packets kept for clips", "bytes",
                   (f"sum by (stream) (streamd_packet_ring_bytes{{{_THESE}}})", "{{stream}}")),
        ),
    ),
    (
        "Classifiers",
        (
            _lines("Crops classified", "cps", (
                f"sum by (classifier, label) ({_rate('streamd_classified_total')})", "{{classifier}} {{label}}")),
            _lines("Crops not classified", "cps", (
                f"sum by (classifier, reason) ({_rate('streamd_classifier_missed_total')})",
                "{{classifier}} {{reason}}")),
            _lines("From capture to result, median", "s", (
                _quantile(0.5, "streamd_classifier_latency_seconds", "classifier", _HERE), "{{classifier}}")),
        ),
    ),
    (
        "Losses",
        (
            _lines("Drops by reason", "fps", (
                f"sum by (reason) ({_rate('streamd_frames_dropped_total')})", "{{reason}}"), stack=True),
            _lines("Drops by stream", "fps", (
                f"sum by (stream) ({_rate('streamd_frames_dropped_total')})", "{{stream}}"), stack=True),
            _lines("Skipped by max_fps", "fps", (_rate("streamd_frames_skipped_total"), "{{stream}}")),
            _lines("Rejected by the decoder", "cps", (_rate("streamd_frames_corrupt_total"), "{{stream}}")),
            _lines("RTP packets lost", "pps", (_rate("streamd_rtp_packets_lost_total"), "{{stream}}")),
            _lines(
                "Camera clock minus ours", "s", (f"streamd_stream_clock_offset_seconds{{{_THESE}}}", "{{stream}}")
            ),
            _lines("Read later than sent", "s", (f"streamd_stream_behind_seconds{{{_THESE}}}", "{{stream}}")),
            _lines(
                "Clock jumps in an hour", "short",
                (f"increase(streamd_stream_clock_jumps_total{{{_THESE}}}[1h])", "{{stream}}"),
            ),
            _lines(
                "Camera clock drift", "ppm",
                (f"streamd_stream_clock_drift_ratio{{{_THESE}}} * 1e6", "{{stream}}"),
            ),
        ),
    ),
    (
        "Engine",
        (
            _lines("Waiting", "short", (f"streamd_queue_depth{{{_HERE}}}", "{{queue}}")),
            _lines("Batches in flight", "short", (f"streamd_slots_in_flight{{{_HERE}}}", "{{instance}}")),
            _lines(
                "Frames per batch (mean)", "short",
                (_mean("streamd_batch_size", "instance", _HERE), "{{instance}}"),
            ),
            _lines("Device memory", "bytes", (f"streamd_device_memory_bytes{{{_HERE}}}", "{{device}} {{kind}}")),
            _lines("Open decoders", "short", (f"streamd_decoder_sessions{{{_HERE}}}", "{{decoder}}"), stack=True),
            Panel(
                "Running versions", "table", "short",
                [(f"streamd_build_info{{{_HERE}}}", ""), (f"streamd_stream_info{{{_THESE}}}", "")],
                options={"showHeader": True},
            ),
        ),
    ),
    (
        "Sinks",
        (
            _lines("Messages", "cps", (_rate("streamd_sink_messages_total", _HERE), "{{sink}}")),
            _lines("Messages lost", "cps", (_rate("streamd_sink_dropped_total", _HERE), "{{sink}} {{reason}}")),
            _lines("Errors", "cps", (_rate("streamd_sink_errors_total", _HERE), "{{sink}}")),
            _lines(
                "Events that wait", "short", (f"streamd_sink_events_queued{{{_HERE}}}", "{{sink}}")
            ),
            _lines(
                "Events", "cps",
                (_rate("streamd_sink_events_accepted_total", _HERE), "{{sink}} accepted"),
                (_rate("streamd_sink_events_settled_total", _HERE), "{{sink}} {{outcome}}"),
            ),
            _lines("On the way to the sink", "s", (f"streamd_sink_relay_seconds{{{_HERE}}}", "{{sink}}"),
                   note="With `workers` only."),
            _lines("Sinks up", "short", (f"streamd_sink_up{{{_HERE}}}", "{{sink}}")),
        ),
    ),
    (
        "Process",
        (
            _lines("CPU", "short", (_rate("process_cpu_seconds_total", _HERE), "{{instance}}"), note="Cores."),
            _lines("Resident memory", "bytes", (f"process_resident_memory_bytes{{{_HERE}}}", "{{instance}}")),
            _lines("Workers up", "short", (f"streamd_worker_up{{{_HERE}}}", "{{worker}}"), note="With `workers` only."),
            _lines("Bundles written per hour", "short", (
                f"increase(streamd_bundles_written_total{{{_HERE}}}[1h])", "{{reason}}"),
                note="Written by the flight recorder, after a failure or on request."),
            _lines(
                "Configuration reloads", "short",
                (f"increase(streamd_config_reloads_total{{{_HERE}}}[1h])", "{{instance}} {{result}}"),
            ),
            _lines("Open files", "short", (f"process_open_fds{{{_HERE}}}", "{{instance}}")),
        ),
    ),
    (
        "Fleet",
        (
            _stat(
                "Boxes up", f'sum(streamd_fleet_boxes{{{_HERE},state=~"UP|LATE"}})', "short", "", (None, "green"), w=3
            ),
            _stat(
                "Boxes lost", f'sum(streamd_fleet_boxes{{{_HERE},state="LOST"}})', "short", "", (None, "green"),
                (1, "red"), w=3,
            ),
            _stat(
                "Streams without a box", f'sum(streamd_fleet_streams{{{_HERE},state="WAITING"}})', "short", "",
                (None, "green"), (1, "red"), w=3,
            ),
            _stat(
                "Without a box if one were lost", f"max(streamd_fleet_unserved_without{{{_HERE}}})", "short",
                "N+1: 0 if the others can serve everything, whichever box is lost.", (None, "green"),
                (1, "orange"), w=5,
            ),
            _stat("Capacity left", f"sum(streamd_fleet_capacity_left_fps{{{_HERE}}})", "fps", "", w=4),
            _stat(
                "Moves in the last hour", f"sum(increase(streamd_fleet_moves_total{{{_HERE}}}[1h]))", "short", "", w=3
            ),
            _stat(
                "Streams with inexact counts", f"sum(streamd_fleet_inexact_streams{{{_HERE}}})", "short", "",
                (None, "green"), (1, "yellow"), w=3,
            ),
            _lines(
                "Streams of the fleet by state", "short",
                (f"sum by (state) (streamd_fleet_streams{{{_HERE}}}) > 0", "{{state}}"), stack=True,
            ),
            _lines(
                "How full each box is", "percentunit", (f"{_LOAD} / on (instance, box) {_CAPACITY}", "{{box}}"),
            ),
            _lines(
                "Moves by reason", "short",
                (f"sum by (reason) (increase(streamd_fleet_moves_total{{{_HERE}}}[5m]))", "{{reason}}"),
            ),
        ),
    ),
)  # fmt: skip
