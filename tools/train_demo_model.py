#!/usr/bin/env python3
"""Trains streamd's bundled detector: six road classes, from random weights, on labelled and teacher-labelled pictures.

    python tools/train_demo_model.py prepare --images DIR --teachers FILE FILE --out PACK.npz [--clips FILE ...]
    python tools/train_demo_model.py train   --pack PACK.npz --out DIR --teachers FILE FILE --minutes 9
    python tools/train_demo_model.py bench   --pack PACK.npz --out DIR --teachers FILE FILE
    python tools/train_demo_model.py export  --weights DIR/demo.pt --out demo.onnx
    python tools/train_demo_model.py calibration --images DIR --out FOLDER

`prepare` reads the folders of demo_model/pack.py's FOLDERS under --images and asks the teachers (YOLOX-Nano and
PicoDet-S, both Apache-2.0) for objects that the labels lack. `train` needs a GPU and asks the teachers again about
every augmented picture, so that training is not limited by the labels. `export` writes ONNX and its sidecar.
`calibration` copies pictures for `streamd quantize --images FOLDER`: those of demo_model/pack.py's CALIBRATION. Needs
PyTorch, NumPy, OpenCV (or Pillow to train), onnx; prepare needs OpenVINO, and PyAV for clips."""

from __future__ import annotations

import argparse
import dataclasses
import time
import types
import typing
from pathlib import Path
from typing import Any

STARTED = time.monotonic()


def _plan_options(parser: argparse.ArgumentParser) -> None:
    """One option for each field of the plan."""
    from demo_model.plan import Plan

    hints = typing.get_type_hints(Plan)
    for field in dataclasses.fields(Plan):
        name, kind = f"--{field.name.replace('_', '-')}", hints[field.name]
        if kind is bool:
            parser.add_argument(name, action=argparse.BooleanOptionalAction, default=field.default)
        elif typing.get_origin(kind) is tuple:
            parser.add_argument(name, nargs="*", type=Path, default=[])
        elif isinstance(kind, types.UnionType):
            parser.add_argument(name, type=Path)
        elif field.default is dataclasses.MISSING:
            parser.add_argument(name, type=kind, required=True)
        else:
            parser.add_argument(name, type=kind, default=field.default, help=f"default {field.default}")


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    p = commands.add_parser("prepare", help="pack pictures and labels into one file")
    p.add_argument("--images", type=Path, required=True, help="folder that holds the image folders")
    p.add_argument("--teachers", type=Path, nargs="+", required=True, help="ONNX files of the teachers")
    p.add_argument("--clips", type=Path, nargs="*", default=[], help="clips to take frames from")
    p.add_argument("--every", type=float, default=1.0, help="seconds between frames of a clip")
    p.add_argument("--quality", type=int, default=60, help="of the stored WebP pictures")
    p.add_argument("--out", type=Path, required=True)
    _plan_options(commands.add_parser("train", help="train; the options are the fields of demo_model/plan.py's Plan"))
    _plan_options(commands.add_parser("bench", help="say how long each part of a step takes, and train nothing"))
    p = commands.add_parser("export", help="write ONNX and its sidecar")
    p.add_argument("--weights", type=Path, required=True, help="what train wrote")
    p.add_argument("--out", type=Path, required=True, help="the ONNX file; its sidecar goes beside it")
    p = commands.add_parser("calibration", help="copy pictures to calibrate INT8 with")
    p.add_argument("--images", type=Path, required=True, help="folder that holds the image folders")
    p.add_argument("--out", type=Path, required=True, help="a folder that does not exist yet")
    options = vars(parser.parse_args(arguments))
    command = options.pop("command")
    if command == "prepare":
        from demo_model.pack import prepare

        prepare(options.pop("images"), options.pop("clips"), options.pop("teachers"), options.pop("out"), **options)
    elif command in ("train", "bench"):
        from demo_model.plan import Plan
        from demo_model.train import Trainer

        options["teachers"] = tuple(options["teachers"])
        values: Any = options
        trainer = Trainer(Plan(**values), STARTED)
        trainer.run() if command == "train" else trainer.prepare()
    elif command == "calibration":
        from demo_model.pack import CALIBRATION, calibration

        print(f"{calibration(options['images'], options['out'], CALIBRATION)} pictures")
    else:
        from demo_model.export import export

        export(options["weights"], options["out"])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
