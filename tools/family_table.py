#!/usr/bin/env python3
"""The table of model families in docs/accuracy.md: accuracy in float and INT8 on several sets of images, and speed.

    python tools/family_table.py MODEL[:HEAD]… --images CALIBRATION --set NAME=FOLDER … --out DIR [--speed]

Each FOLDER has `images` and `labels`. A model says in its sidecar how it is fed. INT8 models are made as `streamd
quantize` makes them by default and are written to OUT whatever they lost, with one JSON file for each model; what is
already there is not made again. The first set is the gate's. Speed is that of OpenVINO on one picture at a time, float
and INT8 in alternating rounds."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from streamd.engine import ModelSettings
from streamd.errors import GateError
from streamd.models.bootstrap import Drop, paired_drop
from streamd.models.dataset import open_dataset
from streamd.models.evaluate import COCO_DETECT, Accuracy, Detector, evaluate
from streamd.models.gate import MAX_DROP
from streamd.models.quantize import quantize
from streamd.models.request import Request

ROUNDS = 10


def accuracy(model: Path, head: str | None, folder: Path, engine: dict[str, Any]) -> Accuracy:
    """COCO's figures of one model on one set."""
    with Detector(ModelSettings(path=str(model)), COCO_DETECT, engine, head) as detector:
        dataset = open_dataset(folder / "images", folder / "labels", detector.labels)
        return evaluate(detector, dataset)


def compared(first: Accuracy, second: Accuracy) -> dict[str, Any]:
    """Both models' figures and the interval of the loss."""
    drop: Drop | None = paired_drop(first.matches, second.matches) if first.matches and second.matches else None
    return {
        "images": first.images,
        "float": {"map": first.map, "map50": first.map50},
        "int8": {"map": second.map, "map50": second.map50},
        "drop": first.map - second.map,
        "interval": None if drop is None else drop.as_json(),
    }


def speed(first: Path, second: Path, engine: dict[str, Any]) -> dict[str, float]:
    """Milliseconds for one picture, without preprocessing: medians and best of alternating rounds."""
    from bench_models import Runner

    runners = {"float": Runner(str(first), engine, live=True), "int8": Runner(str(second), engine, live=True)}
    times: dict[str, list[float]] = {name: [] for name in runners}
    for turn in range(ROUNDS + 1):
        for name, runner in runners.items():
            found = runner.latency_ms(30)
            if turn:  # the first round is for warming up
                times[name] += found
    for runner in runners.values():
        runner.backend.close()
    return {f"{name}_{what}_ms": round(of(t), 3) for name, t in times.items() for what, of in
            (("median", statistics.median), ("best", min))}  # fmt: skip


def row(item: str, args: argparse.Namespace, sets: dict[str, Path]) -> dict[str, Any]:
    """All figures of one model; written to a file as they come."""
    name, _, head = item.partition(":")
    model, engine = Path(name), {"kind": "openvino"} | ({"threads": args.threads} if args.threads else {})
    out = args.out / f"{model.stem}_int8.onnx"
    kept = out.with_suffix(".result.json")
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() and out.exists() else {}
    first = next(iter(sets.values()))
    if not found:
        request = Request(
            model=str(model), images=args.images, out=out, eval_images=str(first / "images"),
            labels=str(first / "labels"), head=head or None, auto=args.auto, max_drop=args.max_drop, engine=engine,
        )  # fmt: skip
        try:
            made = quantize(request)
        except GateError:
            made = quantize(replace(request, force=True))
        found = {"model": model.name, "layers": made.layers, "float_layers": list(made.float_layers), "sets": {}}
        found |= {"refusal": made.verdict.refusal, "escalation": [step.as_json() for step in made.escalation]}
        kept.write_text(json.dumps(found, indent=1) + "\n")
    for label, folder in sets.items():
        if label not in found["sets"]:
            both = (accuracy(path, kind, folder, engine) for path, kind in ((model, head or None), (out, None)))
            found["sets"][label] = compared(*both)
            kept.write_text(json.dumps(found, indent=1) + "\n")
    if args.speed and "speed" not in found:
        found["speed"] = speed(model, out, engine)
        kept.write_text(json.dumps(found, indent=1) + "\n")
    return found


def main() -> int:
    """Prints Markdown rows."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("models", nargs="+", metavar="MODEL[:HEAD]")
    p.add_argument("--images", required=True, help="calibration images, in none of the sets")
    p.add_argument("--set", action="append", required=True, metavar="NAME=FOLDER", dest="sets")
    p.add_argument("--out", required=True, type=Path)
    p.add_argument("--auto", action="store_true", help="keep the fewest layers in float that pass the gate")
    p.add_argument("--max-drop", type=float, default=MAX_DROP)
    p.add_argument("--speed", action="store_true")
    p.add_argument("--threads", type=int, help="OpenVINO's threads")
    args = p.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    sets = {name: Path(folder) for name, _, folder in (item.partition("=") for item in args.sets)}
    for item in args.models:
        found = row(item, args, sets)
        for label, s in found["sets"].items():
            i = s["interval"]
            print(
                f"| {found['model']} | {label}, {s['images']} | {s['float']['map']:.4f} | {s['int8']['map']:.4f} | "
                f"{s['drop']:.4f} ({i['low']:.4f} to {i['high']:.4f}) |",
                flush=True,
            )
        if "speed" in found:
            print(f"| {found['model']} | {json.dumps(found['speed'])} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
