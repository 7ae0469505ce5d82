"""What the page shows besides pictures: each stream's state and counters, read from the registry like a scrape."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry

from streamd import __version__
from streamd.telemetry.shared import SharedAnswer
from streamd.types import StreamStatus
from streamd.web.rules import Rules

_COUNTERS = {
    "streamd_frames_received_total": "received",
    "streamd_frames_published_total": "published",
    "streamd_frames_skipped_total": "skipped",
    "streamd_frames_corrupt_total": "corrupt",
    "streamd_rtp_packets_lost_total": "lost",
    "streamd_stream_clock_jumps_total": "clock_jumps",
    "streamd_stream_reconnects_total": "reconnects",
    "streamd_last_frame_timestamp_seconds": "last_frame",
    "streamd_stream_max_fps": "max_fps",
    "streamd_stream_behind_seconds": "behind_s",
}
_LOOKS = {"streamd_frames_looked_total": "looked", "streamd_frames_glanced_total": "glanced"}
_LATENCY = "streamd_capture_to_publish_seconds"
_STAGE = "streamd_stage_duration_seconds"
_WHERE = re.compile(r"^\S+: |[a-z][a-z0-9+.-]*://\S+")


def without_addresses(detail: str) -> str:
    """A status's detail without the leading URL or file: viewers of a camera need not know its address."""
    return _WHERE.sub("", detail).strip()


class State:
    """Builds the JSON that the page requests once a second.

    Args:
        registry: the metrics registry.
        statuses: the latest status of every stream.
        boot_id: identity of this process.
        rules: the zones and lines; the state says when they have changed.
        problems: what is wrong with the daemon itself, in sentences.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        statuses: Callable[[], Iterable[StreamStatus]],
        boot_id: str,
        rules: Rules | None = None,
        problems: Callable[[], list[str]] = list,
    ) -> None:
        self.rules = rules or Rules()
        self._problems = problems
        self._registry = registry
        self._statuses = statuses
        self._boot_id = boot_id
        self._shared = SharedAnswer()

    def known(self, names: Iterable[str]) -> frozenset[str]:
        """Those of `names` that streams have."""
        return frozenset(names) & {s.stream for s in self._statuses()}

    def json(self) -> bytes:
        """The current state, shared by all viewers: a further one costs nothing."""
        return self._shared.get("json", lambda: msgspec.json.encode(self.view()))

    def view(self) -> dict[str, Any]:
        """The state as JSON values."""
        now = time.time_ns()
        streams: dict[str, dict[str, Any]] = {
            s.stream: {
                "stream": s.stream, "state": s.state, "reason": s.reason, "detail": without_addresses(s.detail),
                "since": s.since_wall_ns / 1e9, "retry_in_s": s.retry_left_s(now), "attempts": s.attempts,
                "codec": s.codec, "decoder": s.decoder,
                "width": s.width, "height": s.height, "fps": s.fps,
                "camera_health": s.camera_health, "dropped": {}, "latency": {"buckets": []},
                "looked": {}, "glanced": {},
            }
            for s in self._statuses()
        }  # fmt: skip
        stages: dict[str, dict[str, float]] = {}
        bounds: list[float] = []
        build: dict[str, str] = {}
        for family in self._registry.collect():
            if not family.name.startswith("streamd_"):
                continue
            for sample in family.samples:
                name, labels, value = sample.name, sample.labels, sample.value
                stream = streams.get(labels.get("stream", ""), {})
                if name == "streamd_build_info":
                    build = {key: labels[key] for key in ("version", "backend", "model")}
                elif name in (f"{_STAGE}_sum", f"{_STAGE}_count"):
                    stage = stages.setdefault(labels["stage"], {"sum": 0.0, "count": 0.0})
                    stage[name.removeprefix(f"{_STAGE}_")] += value  # of all workers
                elif not stream:
                    continue
                elif name in _COUNTERS:
                    stream[_COUNTERS[name]] = value
                elif name == "streamd_frames_dropped_total":
                    stream["dropped"][labels["reason"]] = value
                elif name in _LOOKS:
                    stream[_LOOKS[name]][labels["why"]] = value
                elif name == f"{_LATENCY}_sum":
                    stream["latency"]["sum"] = value
                elif name == f"{_LATENCY}_bucket":
                    stream["latency"]["buckets"].append(value)
                    if len(bounds) < len(stream["latency"]["buckets"]):
                        bounds.append(float(labels["le"]))
        return {
            "boot_id": self._boot_id, "version": build.get("version", __version__), "model": build.get("model", ""),
            "backend": build.get("backend", ""), "now": now / 1e9, "bounds": [b for b in bounds if b != float("inf")],
            "stages": stages, "rules": self.rules.revision, "problems": self._problems(),
            "streams": sorted(streams.values(), key=lambda s: str(s["stream"])),
        }  # fmt: skip
