"""Alert rules and dashboard: promtool's own tests, and every name in them against what a daemon really exports."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from build_reference import fleet_metrics

from tests.behaviour.daemon import Running, daemon, until
from tests.conftest import program

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIGS = ROOT / "configs"
GIVEN_BY_PROMETHEUS = {"job", "instance"}
NEEDS_A_GPU = {"streamd_device_duration_seconds_bucket": {"le", "stage"}, "streamd_device_memory_bytes": {"device"}}
NEEDS_A_CAMERA = {
    f"streamd_stream_{name}": {"stream"} for name in ("clock_offset_seconds", "clock_drift_ratio", "behind_seconds")
}
"""What a live stream tells; tests/sources has such cameras."""
NEEDS_WORKERS = {
    "streamd_sink_relay_seconds": {"sink"},
    **{name: {"worker"} for name in ("streamd_worker_up", "streamd_worker_restarts_total")},
}  # tests/behaviour/test_workers.py
NEEDS_A_BREAKDOWN = {"streamd_bundles_written_total": {"reason"}}  # tests/runtime/recorder
NEEDS_MOTION = {
    "streamd_line_crossings_total": {"stream", "line", "direction", "label"},
    "streamd_zone_dwell_seconds_bucket": {"le", "stream", "zone"},
}  # tests/telemetry/test_analytics.py
NEEDS_CLIPS = {
    **{f"streamd_{what}_written_total": {"stream"} for what in ("clips", "snapshots")},
    **{f"streamd_{what}_failed_total": {"stream", "reason"} for what in ("clips", "snapshots")},
    **{f"streamd_packet_ring_{what}": {"stream"} for what in ("bytes", "overflows_total")},
}  # tests/behaviour/test_evidence.py
NEEDS_A_CLASSIFIER = {
    "streamd_classified_total": {"stream", "classifier", "label"},
    "streamd_classifier_missed_total": {"stream", "classifier", "reason"},
    "streamd_classifier_latency_seconds_bucket": {"le", "classifier"},
}  # tests/runtime/test_classify.py
NEEDS_A_BLIND_CAMERA = {"streamd_camera_health": {"stream", "state"}}  # tests/behaviour/test_camera_health.py
NEEDS_A_FLEET = {
    sample.name: set(sample.labels) for family in fleet_metrics().collect() for sample in family.samples
}  # tests/workers/fleet
ELSEWHERE = {
    **NEEDS_A_FLEET, **NEEDS_A_CLASSIFIER, **NEEDS_A_BLIND_CAMERA, **NEEDS_CLIPS, **NEEDS_MOTION, **NEEDS_A_GPU,
    **NEEDS_A_CAMERA, **NEEDS_WORKERS, **NEEDS_A_BREAKDOWN,
}  # fmt: skip


def promtool(*arguments: str | Path, folder: Path = ROOT) -> str:
    found = program("promtool", "prometheus")
    run = subprocess.run([found, *map(str, arguments)], cwd=folder, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def dashboard_tool() -> Any:
    spec = importlib.util.spec_from_file_location("build_dashboard", ROOT / "tools" / "build_dashboard.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def alerts() -> list[dict[str, Any]]:
    return [rule for g in yaml.safe_load((CONFIGS / "alerts.yml").read_text())["groups"] for rule in g["rules"]]


def panels() -> list[tuple[str, str]]:
    """(title, expression) of every query in the dashboard as it is shipped."""
    panels = json.loads((CONFIGS / "grafana" / "streamd.json").read_text())["panels"]
    return [(p["title"], t["expr"]) for p in panels for t in p.get("targets", ())]


def every_expression() -> list[tuple[str, str]]:
    return panels() + [(rule["alert"], rule["expr"]) for rule in alerts()]


def test_the_configuration_and_the_rules_are_valid() -> None:
    assert "SUCCESS" in promtool("check", "config", CONFIGS / "prometheus.yml")
    promtool("check", "rules", "--lint=all", "--lint-fatal", CONFIGS / "alerts.yml")


def test_the_rules_fire_when_they_should_and_only_then() -> None:
    assert "SUCCESS" in promtool("test", "rules", ROOT / "tests" / "configs" / "alerts_test.yml")
    tested = (ROOT / "tests" / "configs" / "alerts_test.yml").read_text()
    for rule in alerts():
        # An exp_alerts that is not empty: each rule has been seen to fire.
        assert re.search(rf"alertname: {rule['alert']}\n\s+eval_time: \S+\n\s+exp_alerts:\n", tested), rule["alert"]


def test_every_panel_is_promql(tmp_path: Path) -> None:
    expressions = [e.replace("$__rate_interval", "1m").replace('"$', '".') for _, e in panels()]
    assert len(expressions) > 25
    rules = [{"record": f"panel:{i}", "expr": e} for i, e in enumerate(expressions)]
    (tmp_path / "panels.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", tmp_path / "panels.yml")


def test_the_dashboard_is_what_the_tool_writes() -> None:
    tool = dashboard_tool()
    assert json.loads((CONFIGS / "grafana" / "streamd.json").read_text()) == tool.dashboard()
    with pytest.raises(SystemExit, match="panel P: streamd has no metric streamd_nonsense_total"):
        tool._panel(tool.Panel("P", "stat", "short", [("sum(streamd_nonsense_total)", "")]), 1, 0, 0, tool.known())


def test_panels_lie_beside_each_other_within_the_grid() -> None:
    taken: set[tuple[int, int]] = set()
    panels = json.loads((CONFIGS / "grafana" / "streamd.json").read_text())["panels"]
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({p["id"] for p in panels}) == len(panels)
    assert all(p["description"] for p in panels if p["type"] != "row")


STREAMS = """
model: {path: none}
engine: {kind: 'null', latency_ms: 20, slots: 1}
batch: {max: 1}
events: {state_dir: state}
streams:
  - {id: busy, kind: synthetic, fps: 200, ring: 1, objective: {latency_ms: 30}}
  - id: slow
    kind: synthetic
    fps: 100
    max_fps: 5
    zones: [{name: middle, anchor: center, points: [[0.3, 0.3], [0.7, 0.3], [0.7, 0.7], [0.3, 0.7]]}]
  - {id: breaks, kind: synthetic, fps: 50, fail_after: 5, reconnect: {initial_s: 0.05, max_s: 0.05}}
sinks:
  - {kind: jsonl, path: /dev/full, ring: 1}
  - {kind: zmq, bind: 'tcp://127.0.0.1:*'}
  - {kind: webhook, url: 'http://127.0.0.1:9/'}
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, set[str]]]]:
    """Sample name -> label name -> values, of a daemon that drops, breaks and cannot write."""
    with daemon(tmp_path_factory.mktemp("exported"), STREAMS) as running:

        def busy(running: Running) -> bool:
            return (
                running.value("streamd_stream_reconnects_total", stream="breaks") > 1
                and running.value("streamd_frames_dropped_total", stream="busy", reason="ring_full") > 10
                and running.value("streamd_sink_errors_total", sink="jsonl0") > 0
                and running.value("streamd_sink_messages_total", sink="zmq1") > 10
                and running.value("streamd_zone_occupancy", stream="slow", zone="middle", label="thing") == 1
                and running.value("streamd_sink_events_queued", sink="webhook2") == 1
                and running.value("streamd_events_total", stream="slow", rule="middle", type="zone_resumed") == 1
            )

        until(lambda: busy(running), 30, "the daemon is in trouble")
        seen: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        for name, labels in running.metrics():
            for label, value in labels:
                seen[name][label].add(value)
            seen[name]
        yield seen


@pytest.mark.parametrize(("title", "expression"), every_expression())
def test_every_name_is_one_that_the_daemon_exports(
    exported: dict[str, dict[str, set[str]]], title: str, expression: str
) -> None:
    known = {name: set(labels) for name, labels in exported.items()} | ELSEWHERE
    names = re.findall(r"\b(?:streamd|process|python)_[a-z_]+\b", expression)
    assert names or expression.startswith("up{")
    for name in names:
        assert name in known, f"{title}: {name}"
    for name, selector in re.findall(r"\b((?:streamd|process|python)_[a-z_]+)\{([^}]*)\}", expression):
        labels = set(re.findall(r"(\w+)(?==|!)", re.sub(r'"[^"]*"', '""', selector)))
        assert labels <= known[name] | GIVEN_BY_PROMETHEUS, f"{title}: {labels} of {name}"
    grouped = {g.strip() for by in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression) for g in by.split(",")}
    union = set().union(*(known[name] for name in names)) | GIVEN_BY_PROMETHEUS
    assert grouped <= union, f"{title}: {grouped - union}"


def test_legends_use_labels_that_exist(exported: dict[str, dict[str, set[str]]]) -> None:
    tool = dashboard_tool()
    legends = {
        name for _, row in tool.ROWS for p in row for _, text in p.queries for name in re.findall(r"{{(\w+)", text)
    }
    known = set().union(*(set(labels) for labels in exported.values())) | {"device", "kind", "instance", "worker"}
    known |= set().union(*ELSEWHERE.values())
    assert legends <= known
