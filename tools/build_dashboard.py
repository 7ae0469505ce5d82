#!/usr/bin/env python3
"""Writes configs/grafana/streamd.json, the Grafana dashboard; --check tells whether it is up to date.

`dashboard_rows.py` has its panels. Expressions may only use metrics that streamd has; a panel's description is the
metric's.

usage: build_dashboard.py [--check]
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dashboard_rows import ROWS, Panel
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from streamd.telemetry.analytics import AnalyticsMetrics
from streamd.telemetry.classifiers import ClassifierMetrics
from streamd.telemetry.evidence import EvidenceCounts, EvidenceMetrics, MediaMetrics
from streamd.telemetry.metrics import Metrics
from streamd.workers.fleet.metrics import FleetMetrics

TARGET = Path(__file__).resolve().parent.parent / "configs" / "grafana" / "streamd.json"
WIDTH = 24
"""Grafana's grid."""
_SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}


def known() -> dict[str, str]:
    """The metric of each sample by the sample's name, as registered by the daemon."""
    registry = CollectorRegistry()
    Metrics(registry)
    AnalyticsMetrics(registry)
    EvidenceMetrics(registry, EvidenceCounts)
    ClassifierMetrics(registry, lambda: ())
    MediaMetrics(registry, lambda: None)
    registry.register(FleetMetrics(dict))
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    return {
        family.name + suffix: family.documentation
        for family in registry.collect()
        for suffix in _SUFFIXES.get(family.type, ("",))
    }


def named(expression: str) -> set[str]:
    """The metrics in an expression."""
    return set(re.findall(r"\b(?:streamd|process|python)_[a-z_]+\b", expression))


def expressions() -> Iterator[tuple[str, str]]:
    """(panel's title, expression) for every query."""
    for _, panels in ROWS:
        for panel in panels:
            for expression, _ in panel.queries:
                yield panel.title, expression


def _source() -> dict[str, str]:
    return {"type": "prometheus", "uid": "${datasource}"}


def _panel(panel: Panel, number: int, x: int, y: int, metrics: Mapping[str, str]) -> dict[str, Any]:
    names = sorted(name for expression, _ in panel.queries for name in named(expression))
    missing = [name for name in names if name not in metrics]
    if missing:
        raise SystemExit(f"panel {panel.title}: streamd has no metric {', '.join(missing)}")
    words = dict.fromkeys([panel.note, *(metrics[name] for name in names)])
    instant = panel.kind == "table"
    form = {"table": "table", "heatmap": "heatmap"}.get(panel.kind, "time_series")
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": " ".join(word for word in words if word),
        "datasource": _source(),
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
        "fieldConfig": {"defaults": {"unit": panel.unit, **panel.defaults}, "overrides": []},
        "options": dict(panel.options),
        "targets": [
            {
                "refId": chr(ord("A") + i), "datasource": _source(), "expr": expression,
                "legendFormat": legend or "__auto", "format": form, "instant": instant, "range": not instant,
            }
            for i, (expression, legend) in enumerate(panel.queries)
        ],
    }  # fmt: skip


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name, "label": name.capitalize(), "type": "query", "datasource": _source(), "query": query,
        "definition": query, "refresh": 2, "sort": 7, "multi": True, "includeAll": True, "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }  # fmt: skip


def dashboard() -> dict[str, Any]:
    """The complete dashboard, to import into Grafana."""
    metrics = known()
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS:
        panels.append(
            {"id": len(panels) + 1, "type": "row", "title": title, "collapsed": False, "panels": [],
             "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1}}
        )  # fmt: skip
        y += 1
        x = tallest = 0
        for panel in row:
            if x + panel.width > WIDTH:
                x, y, tallest = 0, y + tallest, 0
            panels.append(_panel(panel, len(panels) + 1, x, y, metrics))
            x, tallest = x + panel.width, max(tallest, panel.height)
        y += tallest
    return {
        "uid": "streamd",
        "title": "streamd",
        "tags": ["streamd", "video"],
        "schemaVersion": 38,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
                _variable("instance", "label_values(streamd_build_info, instance)"),
                _variable("stream", 'label_values(streamd_stream_state{instance=~"$instance"}, stream)'),
            ]
        },
        "annotations": {"list": []},
        "panels": panels,
    }


def main() -> int:
    """Writes or checks."""
    text = json.dumps(dashboard(), indent=1) + "\n"
    if "--check" in sys.argv[1:]:
        if not TARGET.exists() or TARGET.read_text() != text:
            print(f"{TARGET} is out of date: run tools/build_dashboard.py", file=sys.stderr)
            return 1
        return 0
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
