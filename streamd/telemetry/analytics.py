"""Metrics of trackers, zones and lines."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_DWELL_BUCKETS = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)


class _Counts(Protocol):
    def counters(self) -> Mapping[str, Any]: ...


class _Tracks(Protocol):
    @property
    def active(self) -> int: ...


class Shown(Protocol):
    """What is read of a stream at a scrape."""

    @property
    def stream(self) -> str: ...
    @property
    def lock(self) -> threading.Lock: ...
    @property
    def tracks(self) -> _Tracks: ...
    @property
    def rules(self) -> _Counts | None: ...


class Told(Protocol):
    """What is counted of an event."""

    @property
    def kind(self) -> str: ...
    @property
    def change(self) -> str: ...
    @property
    def phase(self) -> str: ...
    @property
    def rule(self) -> str: ...
    @property
    def dwell_s(self) -> float: ...


class AnalyticsMetrics(Collector):
    """Counters of rules are kept by the rules themselves and read at a scrape; nothing here is on the hot path.

    Args:
        registry: where everything is registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._shown: dict[str, Shown] = {}
        self._events = Counter(
            "streamd_events", "Events of zones and lines.", ["stream", "rule", "type"], registry=registry
        )
        self._dwell = Histogram(
            "streamd_zone_dwell_seconds",
            "Time between the begin and the end of an event of a zone.",
            ["stream", "zone"],
            buckets=_DWELL_BUCKETS,
            registry=registry,
        )
        self._failures = Counter(
            "streamd_analysis_failures",
            "Times that a tracker or the rules failed on a stream, whose tracks were reset.",
            ["stream"],
            registry=registry,
        )
        registry.register(self)

    def show(self, stream: Shown) -> None:
        """Shows a stream's counters from now on."""
        self._failures.labels(stream=stream.stream)
        self._shown = {**self._shown, stream.stream: stream}

    def hide(self, stream: str) -> None:
        """Shows a stream's counters no longer."""
        self._shown = {name: shown for name, shown in self._shown.items() if name != stream}

    def event(self, stream: str, event: Told) -> None:
        """Counts an event."""
        self._events.labels(stream=stream, rule=event.rule, type=f"{event.kind}_{event.change}").inc()
        if event.kind == "zone" and event.phase == "end":
            self._dwell.labels(stream=stream, zone=event.rule).observe(event.dwell_s)

    def failed(self, stream: str) -> None:
        """Counts a failure of a stream's analysis."""
        self._failures.labels(stream=stream).inc()

    def collect(self) -> Iterable[Metric]:
        """See `Collector`."""
        active = GaugeMetricFamily(
            "streamd_tracks_active", "Confirmed tracks seen in the last frame.", labels=["stream"]
        )
        crossings = CounterMetricFamily(
            "streamd_line_crossings", "Objects that crossed a line.", labels=["stream", "line", "direction", "label"]
        )
        uncertain = CounterMetricFamily(
            "streamd_line_crossings_uncertain",
            "Crossings that were not fully observed.",
            labels=["stream", "line", "direction", "label"],
        )
        occupancy = GaugeMetricFamily(
            "streamd_zone_occupancy", "Objects in a zone, as last known.", labels=["stream", "zone", "label"]
        )
        stale = GaugeMetricFamily(
            "streamd_zone_occupancy_stale",
            "1 while the occupancy is unknown or that of the last picture: the camera is down or cannot see.",
            labels=["stream", "zone"],
        )
        for shown in self._shown.values():
            with shown.lock:
                counts = shown.rules.counters() if shown.rules is not None else {}
                active.add_metric([shown.stream], shown.tracks.active)
            for line, report in counts.get("lines", {}).items():
                for family, field in ((crossings, "crossings"), (uncertain, "uncertain")):
                    for way, labels in report[field].items():
                        for label, count in labels.items():
                            family.add_metric([shown.stream, line, way, label], count)
            for zone, report in counts.get("zones", {}).items():
                stale.add_metric([shown.stream, zone], float(report["stale"]))
                for label, count in report["labels"].items():
                    occupancy.add_metric([shown.stream, zone, label], count)
        return active, crossings, uncertain, occupancy, stale
