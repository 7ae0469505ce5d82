"""`streamd evaluate MODEL [OTHER]`: COCO accuracy through the daemon's own pipeline, for one model or two."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamd.cli.console import (
    add_classes_option,
    add_engine_options,
    add_head_option,
    engine_of,
    options_told,
    progress,
    say,
)
from streamd.errors import ConfigError
from streamd.security.text import plain
from streamd.telemetry.logs import configure

if TYPE_CHECKING:
    from streamd.models.bootstrap import Drop
    from streamd.models.evaluate import Accuracy


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    p = subparsers.add_parser(
        "evaluate",
        help="measure a model's accuracy on labelled images",
        description="Measures COCO mAP through the daemon's own pipeline, for one model, or for two with the "
        "difference and its 95 % interval.",
    )
    p.add_argument("model", metavar="MODEL", help="ONNX model, OpenVINO .xml or TensorRT plan")
    p.add_argument("other", metavar="OTHER", nargs="?", help="second model to compare with the first")
    p.add_argument("--images", required=True, metavar="DIR", help="folder of images")
    p.add_argument(
        "--labels", required=True, metavar="DIR|JSON", help="folder of YOLO text files, or a COCO annotation file"
    )
    p.add_argument(
        "--names", metavar="FILE", help="file of class names, one per line. Default: the model's own, otherwise COCO's"
    )
    p.add_argument(
        "--label-names",
        metavar="FILE",
        help="file of the class names of the YOLO labels, one per line, if they differ from the model's; boxes of "
        "other classes are ignored",
    )
    add_classes_option(p)
    p.add_argument("--conf", type=float, default=0.001, help="lowest score (default 0.001)")
    p.add_argument("--iou", type=float, default=0.6, help="NMS IoU threshold (default 0.6)")
    p.add_argument("--max-det", type=int, default=300, help="most detections per image (default 300)")
    p.add_argument(
        "--single-label", action="store_true", help="report one class per box (default: every class above --conf)"
    )
    p.add_argument("--json", action="store_true", help="print JSON on standard output")
    add_head_option(p)
    add_engine_options(p)


def _measure(model: str, args: argparse.Namespace, report: Any) -> Accuracy:
    from pydantic import ValidationError

    from streamd.engine import ModelSettings
    from streamd.engine.model import read_labels
    from streamd.heads import DetectSettings
    from streamd.models.dataset import image_folder, open_dataset
    from streamd.models.evaluate import Detector, evaluate

    try:
        detect = DetectSettings(conf=args.conf, iou=args.iou, max_det=args.max_det, multi_label=not args.single_label)
    except ValidationError as error:
        raise ConfigError(options_told(error)) from error
    image_folder(args.images)
    label_names = read_labels(args.label_names, "--label-names") if args.label_names else None
    with Detector(ModelSettings(path=model, labels=args.names), detect, engine_of(args), args.head) as detector:
        dataset = open_dataset(args.images, args.labels, detector.labels, label_names)
        name = Path(model).name
        return evaluate(detector, dataset, lambda done, total: report(name, done, total), args.classes)


MARGIN = 0.001
"""mAP: how many images an interval of ± this would need is told."""


def _drop(first: Accuracy, second: Accuracy) -> Drop | None:
    """The loss from the first to the second with its interval, where both saw the same two images or more."""
    from streamd.models.bootstrap import paired_drop

    a, b = first.matches, second.matches
    return paired_drop(a, b) if a is not None and b is not None and a.names == b.names else None


def _print(first: Accuracy, second: Accuracy | None, drop: Drop | None) -> None:
    rows: list[tuple[str, str, float, float | None]] = [
        (name, "", getattr(first, name), None if second is None else getattr(second, name))
        for name in ("map", "map50", "map75")
    ]
    others = {c.class_id: c for c in second.classes} if second is not None else {}
    for c in first.classes:
        after = others.get(c.class_id)
        rows.append((plain(c.label), str(c.boxes), c.ap, after.ap if after else None))
    print(f"{first.images} images, {first.boxes} boxes, {len(first.classes)} classes")
    # 80 columns: a long name loses its end, as both models' names do if they are long.
    header = f"{'':<22}{'boxes':>7}{first.model[:19]:>21}"
    print(header + ("" if second is None else f"{second.model[:19]:>21}{'drop':>9}"))
    for label, boxes, before, after_value in rows:
        line = f"{label[:22]:<22}{boxes:>7}{before:>21.4f}"
        if after_value is not None:
            line += f"{after_value:>21.4f}{before - after_value:>+9.4f}"
        print(line)
    if drop is not None:
        needed = f"about {drop.images_for(MARGIN):,} such images would show ±{MARGIN:g}" if drop.margin > MARGIN else ""
        say(f"mAP {drop}" + (f"; {needed}" if needed else ""))


def run(args: argparse.Namespace) -> int:
    """Measures and prints. Images that cannot be read are named on standard error and skipped."""
    configure("warning")
    with progress() as report:
        found = [_measure(model, args, report) for model in (args.model, args.other) if model]
    first, second = found[0], found[1] if len(found) > 1 else None
    for message in first.unreadable:
        print(f"streamd: {message}", file=sys.stderr)
    if first.unreadable:
        print(f"streamd: {len(first.unreadable)} images could not be read and were skipped", file=sys.stderr)
    if first.unlabelled:
        print(f"streamd: {first.unlabelled} images have no labels and are treated as empty", file=sys.stderr)
    if first.left_out:
        print(f"streamd: {first.left_out} boxes of classes that the model does not have were ignored", file=sys.stderr)
    drop = None if second is None else _drop(first, second)
    if args.json:
        body: dict[str, Any] = {"models": [a.as_json() for a in found]}
        if second is not None:
            body["drop"] = {k: round(getattr(first, k) - getattr(second, k), 6) for k in ("map", "map50", "map75")}
            body["interval"] = None if drop is None else drop.as_json()
        print(json.dumps(body))
    else:
        _print(first, second, drop)
    return 0
