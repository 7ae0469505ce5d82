"""`streamd inspect MODEL`: describes a model and warns of likely problems."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from streamd.cli.console import add_head_option, say
from streamd.security.text import printable, visible
from streamd.telemetry.logs import configure

if TYPE_CHECKING:
    from streamd.models.inspect import Inspection


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    p = subparsers.add_parser(
        "inspect",
        help="describe a model: shapes, operators, head, cost, warnings",
        description="Describes a model, how the daemon would read its outputs, and likely problems.",
    )
    p.add_argument("model", metavar="MODEL", help="ONNX model or TensorRT plan")
    add_head_option(p)
    p.add_argument("--json", action="store_true", help="print JSON on standard output")


MOST_LABELS = 6


def _say(title: str, text: str, indent: int = 12) -> None:
    """Prints what may hold names from a model."""
    say(visible(printable(f"{title:<{indent}}{text}")), indent)


def _tensors(title: str, rows: list[dict[str, Any]] | None) -> None:
    for row in rows or []:
        _say(title, f"{row['name']}  {row['dtype']} [{', '.join(map(str, row['shape']))}]")
        title = ""


def _listed(labels: list[str]) -> str:
    return f"{len(labels)}: {', '.join(labels[:MOST_LABELS])}{'…' if len(labels) > MOST_LABELS else ''}"


def _in_words(key: str, value: Any) -> str:
    """A value of the sidecar's provenance."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_in_words('', each)}" for name, each in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return f"{str(value)[:12]}…" if key.endswith("sha256") else str(value)


def _print(found: Inspection) -> None:
    _say("model", f"{found.path} ({found.bytes / 1e6:.2f} MB, {found.kind}, SHA-256 {found.sha256[:12]}…)")
    _tensors("inputs", found.inputs)
    _tensors("outputs", found.outputs)
    rows: list[tuple[str, str | None]] = [
        ("head", found.head),
        ("labels", _listed(found.labels) if found.labels else None),
        ("opset", None if found.opset is None else str(found.opset)),
        ("exporter", found.producer),
        ("parameters", None if found.parameters is None else f"{found.parameters / 1e6:.3f} million"),
    ]
    if found.gflops is not None and found.input_size is not None:
        size = "×".join(map(str, found.input_size))
        rows.append(("GFLOPs", f"{found.gflops:.2f} at {size}, batch 1 (2 per multiply-add, convolutions only)"))
    if found.quantized is not None:
        of = f", {found.int8_convolutions} of {found.convolutions} convolutions" if found.convolutions else ""
        rows.append(("precision", f"INT8{of}" if found.quantized else "float"))
    if found.operators:
        rows.append(("operators", ", ".join(f"{name} {n}" for name, n in found.operators.items())))
    for title, text in rows:
        if text:
            _say(title, text)
    if found.provenance is not None:
        body = found.provenance.model_dump(mode="json", exclude_defaults=True)
        for i, (key, value) in enumerate(body.items()):
            _say("" if i else "provenance", f"{key.replace('_', ' ')}: {_in_words(key, value)}")
    for title, texts in (("warning: ", found.warnings), ("unknown: ", found.unknown)):
        for text in texts:
            _say(title, text, len(title))


def run(args: argparse.Namespace) -> int:
    """Prints the description; warnings do not change the exit code."""
    configure("warning")
    from streamd.models.inspect import inspect

    found = inspect(args.model, args.head)
    if args.json:
        print(json.dumps(found.as_json()))
    else:
        _print(found)
    return 0
