"""Metrics of trackers, zones and lines, as a scrape shows them."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

from prometheus_client import CollectorRegistry

from streamd.telemetry.analytics import AnalyticsMetrics
from tests.configs.test_observability import NEEDS_MOTION

COUNTERS = {
    "lines": {"gate": {"crossings": {"a_to_b": {"person": 3}}, "uncertain": {"a_to_b": {"person": 1}}}},
    "zones": {"hall": {"stale": False, "labels": {"person": 2}}},
}


def shown(stream: str, counters: dict[str, Any] | None) -> Any:
    rules = SimpleNamespace(counters=lambda: counters) if counters is not None else None
    return SimpleNamespace(stream=stream, lock=threading.Lock(), tracks=SimpleNamespace(active=4), rules=rules)


def test_what_rules_count_is_read_at_a_scrape_and_hidden_with_its_stream() -> None:
    registry = CollectorRegistry()
    metrics = AnalyticsMetrics(registry)
    metrics.show(shown("yard", COUNTERS))
    metrics.show(shown("plain", None))
    crossing = {"stream": "yard", "line": "gate", "direction": "a_to_b", "label": "person"}
    value = registry.get_sample_value
    assert value("streamd_line_crossings_total", crossing) == 3
    assert value("streamd_line_crossings_uncertain_total", crossing) == 1
    assert value("streamd_zone_occupancy", {"stream": "yard", "zone": "hall", "label": "person"}) == 2
    assert value("streamd_zone_occupancy_stale", {"stream": "yard", "zone": "hall"}) == 0
    assert value("streamd_tracks_active", {"stream": "plain"}) == 4
    metrics.hide("yard")
    assert value("streamd_line_crossings_total", crossing) is None


def test_events_and_the_time_in_zones() -> None:
    registry = CollectorRegistry()
    metrics = AnalyticsMetrics(registry)
    for change, phase, dwell in (("entered", "begin", 0.0), ("exited", "end", 7.0)):
        event: Any = SimpleNamespace(kind="zone", change=change, phase=phase, rule="hall", dwell_s=dwell)
        metrics.event("yard", event)
    zone = {"stream": "yard", "zone": "hall"}
    assert registry.get_sample_value("streamd_zone_dwell_seconds_count", zone) == 1
    assert registry.get_sample_value("streamd_zone_dwell_seconds_sum", zone) == 7
    exited = {"stream": "yard", "rule": "hall", "type": "zone_exited"}
    assert registry.get_sample_value("streamd_events_total", exited) == 1


def test_labels_are_those_that_panels_and_rules_may_name() -> None:
    registry = CollectorRegistry()
    metrics = AnalyticsMetrics(registry)
    metrics.show(shown("yard", COUNTERS))
    event: Any = SimpleNamespace(kind="zone", change="exited", phase="end", rule="hall", dwell_s=1.0)
    metrics.event("yard", event)
    labels = {s.name: set(s.labels) for family in registry.collect() for s in family.samples}
    assert {name: labels[name] for name in NEEDS_MOTION} == NEEDS_MOTION
