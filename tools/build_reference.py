#!/usr/bin/env python3
"""Writes docs/configuration.md, metrics.md and messages.schema.json from the code; --check tells whether they are up to
date.

usage: build_reference.py [--check]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics import MetricWrapperBase

from streamd.config import Config
from streamd.fleet.records import Account, FleetBox, FleetStatus, FleetStream
from streamd.fleet.view import metrics_of
from streamd.sinks.message import json_schema
from streamd.telemetry.analytics import AnalyticsMetrics
from streamd.telemetry.classifiers import ClassifierMetrics
from streamd.telemetry.evidence import EvidenceCounts, EvidenceMetrics, MediaMetrics
from streamd.telemetry.metrics import Metrics
from streamd.workers.fleet.metrics import FleetMetrics

DOCS = Path(__file__).resolve().parent.parent / "docs"
HEAD = """# Configuration reference

Generated from the code by `tools/build_reference.py`; `streamd schema` prints the same as JSON Schema.

The file format is YAML. `${NAME}` is replaced by the environment variable (an error if it is not set), `${NAME:-text}`
has a default, `${file:PATH}` is a file's content without its last line break, and `$$` is a dollar sign. `$NAME` in
such a path is an environment variable: `${file:$CREDENTIALS_DIRECTORY/camera}`. Substituted values are treated as
secrets, except file names in `path` and `url`: they appear in no log, metric or message. Relative paths are relative to
the configuration file. `streamd check FILE` reports all problems at once, each with its line and field.

```yaml
model: {path: model.onnx}
streams:
  - {id: gate, url: "rtsp://${CAM_USER}:${CAM_PASSWORD}@10.0.0.7/stream1", max_fps: 10}
  - {id: yard, url: yard.mp4, loop: true}
sinks:
  - {kind: zmq, bind: "tcp://127.0.0.1:5555"}
```

If a field accepts one of several sections, the section's `kind` selects it.
"""
METRICS_HEAD = """# Metrics

All metrics at `/metrics`, besides those of Python and the process. Generated from the code by
`tools/build_reference.py`. [tuning.md](tuning.md#read-the-metrics) explains how to read them.

| metric | kind | labels | meaning |
|---|---|---|---|
"""


def kind_of(entry: dict[str, Any], definitions: dict[str, Any]) -> str:
    """A field's type in words, with links to sections."""
    if "$ref" in entry:
        return link(entry["$ref"].rsplit("/", 1)[1])
    for key in ("anyOf", "oneOf"):
        if key in entry:
            names = [e["$ref"].rsplit("/", 1)[1] for e in entry[key] if "$ref" in e]
            kinds = [definitions[name]["properties"].get("kind", {}).get("const") for name in names]
            if len(names) == len(entry[key]) > 1 and all(kinds):
                # What is written in the file, not what the section is called here.
                linked = [f"[`{kind}`](#{name.lower()})" for kind, name in zip(kinds, names, strict=True)]
                return f"section of kind {', '.join(linked[:-1])} or {linked[-1]}"
            return " or ".join(dict.fromkeys(kind_of(e, definitions) for e in entry[key]))
    if "const" in entry:
        return f"`{entry['const']}`"
    if "enum" in entry:
        return ", ".join(f"`{v}`" for v in entry["enum"])
    kind = {"string": "text", "integer": "whole number", "boolean": "true or false", "null": "null"}.get(
        entry.get("type", ""), entry.get("type", "")
    )
    if kind == "array":
        if pair := entry.get("prefixItems"):
            return f"list: {len(pair)} × {kind_of(pair[0], definitions)}"
        items = entry.get("items") or {}
        return f"list of {kind_of(items, definitions).replace('section of', 'sections of')}" if items else "list"
    if kind == "object":
        return "mapping"
    low = entry.get("minimum", entry.get("exclusiveMinimum"))
    high = entry.get("maximum", entry.get("exclusiveMaximum"))
    if low is not None and high is not None:
        return f"{kind}, {low:g} to {high:g}"
    return kind if low is None else f"{kind}, {'more than' if 'exclusiveMinimum' in entry else 'at least'} {low:g}"


def link(name: str) -> str:
    """A link to a section's heading."""
    return f"[{name}](#{name.lower()})"


def default_of(entry: dict[str, Any], *, required: bool) -> str:
    """A field's default in words."""
    if required:
        return "required"
    value = entry.get("default")
    return "" if value is None or isinstance(value, (dict, list)) else f"`{json.dumps(value)}`"


def section(name: str, definition: dict[str, Any], definitions: dict[str, Any]) -> str:
    """One table."""
    lines = [f"\n## {name}\n", " ".join(definition.get("description", "").split()), ""]
    lines += ["| field | value | default | meaning |", "|---|---|---|---|"]
    required = definition.get("required", ())
    for field, entry in definition.get("properties", {}).items():
        meaning = entry.get("description", "") or ("Selects this section." if field == "kind" else "")
        if not meaning and "$ref" in entry:  # pydantic omits what the section itself declares
            meaning = definitions[entry["$ref"].rsplit("/", 1)[1]].get("description", "")
        cells = field, kind_of(entry, definitions), default_of(entry, required=field in required), meaning
        lines.append("| `{}` | {} | {} | {} |".format(*(c.replace("|", "\\|") for c in cells)))
    return "\n".join(lines)


def order(node: Any, definitions: dict[str, Any], found: dict[str, None]) -> dict[str, None]:
    """The sections in order of appearance."""
    if isinstance(node, list):
        for each in node:
            order(each, definitions, found)
    elif isinstance(node, dict):
        name = str(node.get("$ref", "")).rpartition("/")[2]
        if name and name not in found:
            found[name] = None
            order(definitions[name].get("properties", {}), definitions, found)
        order([value for key, value in node.items() if key != "$ref"], definitions, found)
    return found


def reference() -> str:
    """The whole document."""
    schema = Config.model_json_schema()
    definitions = schema["$defs"]
    parts = [HEAD.rstrip(), section("The file", schema, definitions)]
    parts += [section(name, definitions[name], definitions) for name in order(schema["properties"], definitions, {})]
    return "\n".join(parts) + "\n"


def metrics() -> str:
    """The metrics document."""
    metrics = Metrics(CollectorRegistry())
    stream = metrics.stream("any")
    # Metrics that are only exported if their value is known.
    stream.decoder, stream.clock_offset_s, stream.clock_drift, stream.objective_s = "software", 0.0, 0.0, 1.0
    stream.behind_s = 0.0
    stream.drop("any")
    stream.fail("any")
    stream.reject({"any": 1})
    metrics.stage_duration.tally("any")
    metrics.capture_to_publish.tally("any")
    metrics.detections.of("any", ("any",))[0] = 1
    analytics = AnalyticsMetrics(metrics.registry)
    evidence = EvidenceMetrics(metrics.registry, EvidenceCounts)
    MediaMetrics(metrics.registry, lambda: None)
    metrics.registry.register(fleet_metrics())
    classifiers = ClassifierMetrics(metrics.registry, lambda: ())
    parts = (*vars(metrics).values(), *vars(analytics).values(), *vars(classifiers).values())
    declared = {m._name: m._labelnames for m in parts if isinstance(m, MetricWrapperBase)}
    declared |= {
        family.name: family._labelnames
        for family in (*analytics.collect(), *evidence.collect(), *classifiers.collect())
        if isinstance(family, (CounterMetricFamily, GaugeMetricFamily))
    }
    rows = []
    for family in metrics.registry.collect():
        named = declared.get(family.name, ()) or getattr(family, "_labelnames", ())
        labels = named or (family.samples[0].labels if family.samples else ())
        suffix = "_total" if family.type == "counter" else ""
        listed = ", ".join(f"`{label}`" for label in labels if label != "le")
        rows.append(f"| `{family.name}{suffix}` | {family.type} | {listed} | {family.documentation} |")
    return METRICS_HEAD + "\n".join(sorted(rows)) + "\n"


def fleet_metrics() -> FleetMetrics:
    """Those of a coordinator, with a sample of each."""
    box = FleetBox("any", "any", "UP", "", 1, 1.0, 1.0, False, 0.0, None, "any")
    waiting = FleetStream("any", None, 0, "WAITING", "any", None, Account())
    status = FleetStatus([box], [waiting], {"any": 1}, 1.0, {"any": []}, False)
    return FleetMetrics(lambda: metrics_of(status, 0))


def main() -> int:
    """Writes or checks."""
    wanted = {
        DOCS / "configuration.md": reference(),
        DOCS / "metrics.md": metrics(),
        DOCS / "messages.schema.json": json.dumps(json_schema(), indent=2) + "\n",
    }
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path} is out of date: run tools/build_reference.py", file=sys.stderr)
        return 1 if stale else 0
    for path, text in wanted.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
