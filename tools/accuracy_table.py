#!/usr/bin/env python3
"""The table of calibration methods × models in docs/accuracy.md: quantise, evaluate, one row each.

    python tools/accuracy_table.py MODEL[:HEAD]… --images CALIBRATION --eval-images DIR --labels DIR [--out DIR]

Models are written into OUT (a temporary folder by default) whatever the accuracy gate says: they are for measuring
only."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

METHODS = ("mse", "minmax", "percentile", "entropy")


def quantize(model: str, head: str, method: str, args: argparse.Namespace, out: Path) -> dict[str, Any]:
    """One run of `streamd quantize`, with what it printed."""
    command = [
        sys.executable, "-m", "streamd", "quantize", model, "--images", args.images, "--eval-images", args.eval_images,
        "--labels", args.labels, "--method", method, "--out", str(out), "--no-cache", "--force", "--json",
    ]  # fmt: skip
    if head:
        command += ["--head", head]
    begin = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{model} {method}: {done.stderr.strip()[-300:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found | {"wall_s": round(time.monotonic() - begin, 1)}


def main() -> int:
    """Prints Markdown rows, and writes all results as JSON into OUT."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("models", nargs="+", metavar="MODEL[:HEAD]")
    p.add_argument("--images", required=True)
    p.add_argument("--eval-images", required=True)
    p.add_argument("--labels", required=True)
    p.add_argument("--out", type=Path)
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = args.out or Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        for item in args.models:
            model, _, head = item.partition(":")
            for method in METHODS:
                target = out / f"{Path(model).stem}_{method}.onnx"
                found = quantize(model, head, method, args, target)
                (out / f"{target.stem}.result.json").write_text(json.dumps(found, indent=1) + "\n")
                print(f"{Path(model).stem} {method} {json.dumps(found)[:400]}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
