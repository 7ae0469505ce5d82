#!/usr/bin/env python3
"""The table of calibration methods × models in docs/accuracy.md: quantise, evaluate, one row each.

    python tools/accuracy_table.py MODEL[:HEAD]… --images CALIBRATION --eval-images DIR --labels DIR [--out DIR]

Models are made by `streamd quantize` with its defaults but for the method, and written into OUT (a temporary folder by
default) whatever the accuracy gate says: they are for measuring only. The activations of a model are recorded once,
for all methods."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from streamd.engine import ModelSettings
from streamd.heads import DetectSettings
from streamd.models.calibrate import METHODS
from streamd.models.evaluate import Boxes, Detector
from streamd.models.gate import NEAR, agreement
from streamd.models.pictures import Pictures

HEAD = ("model", "method", "mAP float", "mAP INT8", "lost", "mAP50 float", "mAP50 INT8", "boxes agreed on", "in float")
Found = dict[str, Any]


def quantize(model: str, head: str, method: str, args: argparse.Namespace, out: Path) -> Found:
    """What `streamd quantize` said."""
    command = [
        sys.executable, "-m", "streamd", "quantize", model, "--images", args.images, "--eval-images", args.eval_images,
        "--labels", args.labels, "--method", method, "--out", str(out), "--force", "--json",
        "--cache", str(out.with_name(f"{Path(model).stem}.cache.json")),
    ]  # fmt: skip
    if head:
        command += ["--head", head]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{model} {method}: {done.stderr.strip()[-300:]}")
    found: Found = json.loads(done.stdout)
    return found


def boxes(model: str, head: str, pictures: str) -> list[Boxes]:
    """What a model detects, for comparing two."""
    with Detector(ModelSettings(path=model), DetectSettings(conf=NEAR), {"kind": "openvino"}, head or None) as detector:
        return list(detector.detect(Pictures(pictures, 1 << 20).frames()))


def row(model: str, found: Found) -> str:
    """A line of the table."""
    a, interval = found["accuracy"], found["interval"]
    lost = f"{a['map_drop']:.4f}" + (f" ({interval['low']:.4f} to {interval['high']:.4f})" if interval else "")
    cells = [model, found["method"], f"{a['map_float']:.4f}", f"{a['map']:.4f}", lost.replace("-", "−")]
    cells += [f"{a['map50_float']:.4f}", f"{a['map50']:.4f}", f"{found['agreed'] * 100:.1f} %"]
    return "| " + " | ".join([*cells, f"{len(found['float_layers'])} of {found['layers']}"]) + " |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table in Markdown, and writes all results as JSON into OUT."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("models", nargs="+", metavar="MODEL[:HEAD]")
    p.add_argument("--images", required=True)
    p.add_argument("--eval-images", required=True)
    p.add_argument("--labels", required=True)
    p.add_argument("--out", type=Path)
    args = p.parse_args(arguments)
    print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD))
    with tempfile.TemporaryDirectory() as folder:
        out = args.out or Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        for item in args.models:
            model, _, head = item.partition(":")
            before = boxes(model, head, args.eval_images)
            for method in METHODS:
                target = out / f"{Path(model).stem}_{method}.onnx"
                found = quantize(model, head, method, args, target) | {"method": method}
                found["agreed"] = agreement(before, boxes(str(target), "", args.eval_images))[0]
                (out / f"{target.stem}.result.json").write_text(json.dumps(found, indent=1) + "\n")
                print(row(Path(model).stem, found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
