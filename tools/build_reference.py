#!/usr/bin/env python3
"""Writes docs/configuration.md, metrics.md and messages.schema.json from the code; --check tells whether they are up to
date.

usage: build_reference.py [--check]
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
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

If a field accepts one of several sections, the section's `kind` selects it. A field whose default is left blank here
may be left out: its meaning says what applies then; a list is then empty, and a section has its own defaults.
"""
MOST_KINDS = 6
"""That are listed in the cell of a table."""
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
            return either(dict.fromkeys(bracketed(kind_of(e, definitions)) for e in entry[key]))
    if "const" in entry:
        return f"`{entry['const']}`"
    if "enum" in entry:
        return ", ".join(f"`{v}`" for v in entry["enum"])
    kind = {"string": "text", "integer": "whole number", "boolean": "true or false", "null": "null"}.get(
        entry.get("type", ""), entry.get("type", "")
    )
    if kind == "array":
        if pair := entry.get("prefixItems"):
            return f"list of {len(pair)} {plural(kind_of(pair[0], definitions))}"
        items = entry.get("items") or {}
        return f"list of {plural(kind_of(items, definitions))}" if items else "list"
    if kind == "object":
        return "mapping"
    return ", ".join([kind, *range_of(entry)])


def range_of(entry: dict[str, Any]) -> list[str]:
    """The bounds of a number in words; none if it has none."""
    if "minimum" in entry and "maximum" in entry:
        return [f"{decimal(entry['minimum'])} to {decimal(entry['maximum'])}"]
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    return [f"{word} {decimal(entry[key])}" for key, word in words.items() if key in entry]


def decimal(value: float) -> str:
    """A number without an exponent, and without zeros at its end."""
    return str(int(value)) if value == int(value) else f"{value:f}".rstrip("0")


def code(text: str, values: Sequence[str]) -> str:
    """A description as Markdown: names, settings and values as code, guides of docs/ as links.

    Args:
        text: with some of them as code already.
        values: that the field may have.
    """
    told = "|".join(map(re.escape, sorted(values, key=len, reverse=True)))
    words = "|".join(
        (
            r"\$\{[^}]*\}",  # ${NAME}
            r"\{\w+: [^}]*\}",  # a mapping
            r"\b(?:isolation|look\.when): \w+",
            r"\b(?:tcp|ipc|http)://[A-Z\d][\w:.]*\w",  # tcp://HOST:PORT
            r"(?:--)?\b[a-z]+(?:[_.][a-z]+)*_[a-z\d]+\b",  # at_least_every_s
            r"\bbuiltin:\w+",
            r"(?<![\w/])/(?:metrics|healthz|readyz|status|sd|v1/\w+|dev/\w+)\b",
            *([rf"(?<![\w-])(?:{told})(?=:)", rf"(?<=Default: )(?:{told})\b"] if told else []),  # auto: …
        )
    )
    parts = text.split("`")
    for i in range(0, len(parts), 2):  # outside of code
        parts[i] = re.sub(words, lambda found: f"`{found[0]}`", parts[i])
    return re.sub(r"\bdocs/(\w+\.md)", r"[\1](\1)", "`".join(parts))


def values_of(entry: dict[str, Any]) -> list[str]:
    """The words that a field may have for a value, and what else its description may explain."""
    found = [str(value) for value in entry.get("enum", ())]
    if isinstance(entry.get("const"), str):
        found.append(entry["const"])
    for each in entry.get("anyOf", ()):
        found += values_of(each)
    return found + (["true", "false"] if entry.get("type") == "boolean" else [])


def bracketed(kind: str) -> str:
    """A number's bounds in parentheses, where more follows."""
    return re.sub(r"^(.*number), (.*)$", r"\1 (\2)", kind)


def plural(kind: str) -> str:
    """`number, 0 to 1` as `numbers (0 to 1)`."""
    return re.sub(r"\b(list|number|section|text)(?= |$)", r"\1s", bracketed(kind))


def either(kinds: Iterable[str]) -> str:
    """`a, b or c`."""
    *others, last = kinds
    return f"{', '.join(others)} or {last}" if others else last


def link(name: str) -> str:
    """A link to a section's heading."""
    return f"[{name}](#{name.lower()})"


def default_of(entry: dict[str, Any], *, required: bool) -> str:
    """A field's default in words."""
    if required:
        return "required"
    value = entry.get("default")
    if value is None or isinstance(value, dict) or value == []:
        return ""
    plain = isinstance(value, str) and yaml.safe_load(value) == value  # text in YAML, too
    return f"`{value if plain else json.dumps(value)}`"


def section(name: str, definition: dict[str, Any], definitions: dict[str, Any]) -> str:
    """One table."""
    lines = [f"\n## {name}\n", code(" ".join(definition.get("description", "").split()), ()), ""]
    lines += ["| field | value | default | meaning |", "|---|---|---|---|"]
    below = []
    required = definition.get("required", ())
    for field, entry in definition.get("properties", {}).items():
        meaning = entry.get("description", "") or ("Selects this section." if field == "kind" else "")
        if not meaning and "$ref" in entry:  # pydantic omits what the section itself declares
            meaning = definitions[entry["$ref"].rsplit("/", 1)[1]].get("description", "")
        default = default_of(entry, required=field in required)
        kind = kind_of(entry, definitions)
        if kind.count("](") > MOST_KINDS:  # they would leave no room for the meaning
            below.append(f"\n`{field}` is a {kind}.")
            kind = "section, see below"
        cells = field, kind, default, code(meaning, values_of(entry))
        lines.append("| `{}` | {} | {} | {} |".format(*(c.replace("|", "\\|") for c in cells)))
    return "\n".join(lines + below)


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
