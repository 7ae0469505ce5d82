#!/usr/bin/env python3
"""The tables of model families in docs/accuracy.md: accuracy in float and INT8 on sets of images; layers and speed.

    python tools/family_table.py MODEL[:HEAD][=INT8]… --images CALIBRATION --set NAME=FOLDER … --out DIR
        [--speed] [--gpu-json OUT/engine.json] [--trained MODEL=NAME[,NAME]…] [--title MODEL=TEXT]

Each FOLDER has `images` and `labels`. A model says in its sidecar how it is fed. INT8 models are made as `streamd
quantize` makes them by default, unless one is given, and are written to DIR whatever they lost, with one JSON file for
each model; what is already there is not made again. The first set is the gate's. Speed is that of OpenVINO on one
picture at a time, float and INT8 in alternating rounds. GPU times are those that `tools/gpu_suite.py engine` wrote of
plans called like the two models' files (`yolov5n.plan`, `yolov5n_int8.plan`); where there is none, the cell is
blank. --trained names sets that a model was trained on: it is not judged on them."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from streamd.engine import BUILTIN, ModelSettings
from streamd.engine.model import model_file, read_labels
from streamd.engine.sidecar import read_sidecar
from streamd.errors import GateError
from streamd.heads import HEADS
from streamd.models.bootstrap import CONFIDENCE, RESAMPLES, Drop, ends, mean_ends, paired_losses
from streamd.models.dataset import open_dataset
from streamd.models.evaluate import COCO_DETECT, Accuracy, Detector, evaluate
from streamd.models.gate import MAX_DROP
from streamd.models.graph import prepare
from streamd.models.qdq import find_sites
from streamd.models.quantize import quantize
from streamd.models.quantizer import input_spec
from streamd.models.request import Request
from streamd.models.sensitivity import multiplications

ROUNDS, PICTURES = 60, 5
Found = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """One model of the table."""

    model: str
    head: str | None
    int8: str | None
    """An INT8 form that exists."""

    @classmethod
    def of(cls, text: str) -> Item:
        """MODEL[:HEAD][=INT8]; builtin:NAME is a model."""
        model, _, int8 = text.partition("=")
        name, _, head = model.rpartition(":")
        if head not in HEADS.names():
            name, head = model, ""
        return cls(name, head or None, int8 or None)

    @property
    def name(self) -> str:
        """What options, plans and result files call it."""
        return Path(self.model.removeprefix(BUILTIN)).stem


def accuracy(model: str, head: str | None, folder: Path, engine: Found, label_names: Sequence[str] | None) -> Accuracy:
    """COCO's figures of one model on one set."""
    with Detector(ModelSettings(path=model), COCO_DETECT, engine, head) as detector:
        known = None if label_names is None or len(label_names) == len(detector.labels) else label_names
        return evaluate(detector, open_dataset(folder / "images", folder / "labels", detector.labels, known))


def compared(first: Accuracy, second: Accuracy) -> Found:
    """Both models' figures and the interval of the loss."""
    found = paired_losses(first.matches, second.matches) if first.matches and second.matches else None
    interval, losses = None, []
    if found is not None:
        value, lost = found
        interval = Drop(value, *ends(lost), first.images, RESAMPLES, CONFIDENCE).as_json()
        losses = [round(float(v), 5) for v in lost]
    return {
        "images": first.images,
        "classes": len(first.classes),
        "float": {"map": first.map, "map50": first.map50},
        "int8": {"map": second.map, "map50": second.map50},
        "drop": first.map - second.map,
        "interval": interval,
        "losses": losses,
    }


def speed(first: str, second: str, engine: Found) -> dict[str, float]:
    """Milliseconds for one picture, without preprocessing: medians and best of alternating rounds.

    With one thread it is CPU time, which other work on the machine disturbs less.
    """
    from bench_models import Runner

    clock = time.process_time if engine.get("threads") == 1 else time.perf_counter
    runners = {"float": Runner(first, engine, live=True), "int8": Runner(second, engine, live=True)}
    times: dict[str, list[float]] = {name: [] for name in runners}
    for turn in range(ROUNDS + 1):
        for name, runner in runners.items():
            backend = runner.backend
            for _ in range(PICTURES):
                begin = clock()
                backend.infer(backend.slots[0])
                backend.collect(backend.slots[0])
                if turn:  # the first round is for warming up
                    times[name].append((clock() - begin) * 1e3)
    for runner in runners.values():
        runner.backend.close()
    return {f"{name}_{what}_ms": round(of(t), 3) for name, t in times.items() for what, of in
            (("median", statistics.median), ("best", min))}  # fmt: skip


def float_share(model: str, layers: Sequence[str]) -> float:
    """Share of the multiplications that these layers make."""
    spec, graph = input_spec(model), prepare(model_file(model))
    shape = (max(spec.input.shape[0], 1), 3, spec.input_height, spec.input_width)
    found = multiplications(graph, find_sites(graph), np.zeros(shape, np.float32))
    return sum(found[name] for name in layers)


def made(item: Item, args: argparse.Namespace, first: Path, engine: Found) -> Found:
    """The INT8 model, and what is known of it."""
    if item.int8 is not None:
        provenance = read_sidecar(model_file(item.int8)).provenance
        float_layers = () if provenance is None else provenance.float_layers
        found: Found = {"int8": item.int8, "refusal": None, "escalation": []}
    else:
        out = args.out / f"{item.name}_int8.onnx"
        request = Request(
            model=item.model, images=args.images, out=out, eval_images=str(first / "images"),
            labels=str(first / "labels"), head=item.head, auto=args.auto, max_drop=args.max_drop, engine=engine,
        )  # fmt: skip
        try:
            result = quantize(request)
        except GateError:
            result = quantize(replace(request, force=True))
        float_layers = result.float_layers
        found = {"int8": str(out), "refusal": result.verdict.refusal}
        found |= {"escalation": [step.as_json() for step in result.escalation]}
    spec = input_spec(item.model)
    found |= {
        "model": item.name,
        "size": spec.input_width,
        "layers": len(find_sites(prepare(model_file(item.model))).layers),
    }
    found |= {"float_layers": list(float_layers), "float_share": round(float_share(item.model, float_layers), 4)}
    return found | {"sets": {}}


def measured(item: Item, args: argparse.Namespace, sets: Mapping[str, Path], trained: Sequence[str]) -> Found:
    """All figures of one model; written to a file as they come."""
    engine: Found = {"kind": "openvino"} | ({"threads": args.threads} if args.threads else {})
    kept = args.out / f"{item.name}.result.json"
    found: Found = json.loads(kept.read_text()) if kept.exists() else {}

    def keep() -> None:
        kept.write_text(json.dumps(found, indent=1) + "\n")

    if not found or not model_file(found["int8"]).exists():
        found = made(item, args, next(iter(sets.values())), engine)
        keep()
    label_names = read_labels(args.label_names, "--label-names") if args.label_names else None
    for label, folder in sets.items():
        if label not in found["sets"] and label not in trained:
            both = ((item.model, item.head), (found["int8"], None))
            found["sets"][label] = compared(*(accuracy(path, kind, folder, engine, label_names) for path, kind in both))
            keep()
    if args.speed and "speed" not in found:
        found["speed"] = speed(item.model, found["int8"], engine)
        keep()
    return found


def gpu_ms(gpu: Mapping[str, Any], stem: str, batch: int) -> float | None:
    """Milliseconds of a plan's batch, with CUDA graphs where they were measured; None if it was not measured."""
    for graphs in ("on", "off"):
        value = gpu.get(f"{stem} graphs {graphs}", {}).get(str(batch), {}).get("ms")
        if value is not None:
            return float(value)
    return None


def _loss(value: float, ends_: tuple[float, float] | None) -> str:
    """What INT8 lost, with the interval where there is one."""
    text = f"{value:.4f}"
    if ends_ is not None:
        text += " ({:.4f} to {:.4f})".format(*ends_)
    return text.replace("-", "−")


def _mean(judged: Sequence[Found]) -> str:
    """What INT8 lost in the mean of several sets, with its interval."""
    losses = [np.array(one.get("losses", ())) for one in judged]
    known = mean_ends(losses) if all(len(lost) for lost in losses) else None
    return _loss(sum(one["drop"] for one in judged) / len(judged), known)


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def losses(
    found: Found, title: str, sets: Sequence[str], trained: Sequence[str], images: Mapping[str, int]
) -> list[str]:
    """Lines of Markdown: the model on each set, and what INT8 lost in their mean."""
    lines, judged = [], []
    for name in sets:
        of = f"{images[name]:,} of {name}" if name in images else name
        if name in found["sets"]:
            one = found["sets"][name]
            interval = one["interval"]
            lost = _loss(one["drop"], None if interval is None else (interval["low"], interval["high"]))
            lines.append([of, f"{one['float']['map']:.4f}", f"{one['int8']['map']:.4f}", lost])
            judged.append(one)
        elif name in trained:
            lines.append([of, "in training", "", ""])
    if len(judged) > 1:
        lines.append(["mean", "", "", _mean(judged)])
    return [_line([title if i == 0 else "", *cells]) for i, cells in enumerate(lines)]


def cost(found: Found, title: str, gpu: Mapping[str, Any], batch: int) -> str:
    """A line of Markdown: what stays in float, and how long a picture takes in both forms."""
    times = found.get("speed", {})
    share = f"{found['float_share'] * 100:.1f} %" if found["float_layers"] else ""
    plans = (found["model"], Path(found["int8"].removeprefix(BUILTIN)).stem)
    cells = [title, f"{len(found['float_layers'])} of {found['layers']}", share]
    cells += [_ms(times.get(f"{form}_best_ms")) for form in ("float", "int8")]
    return _line([*cells, *(_ms(gpu_ms(gpu, plan, batch)) for plan in plans)])


def _line(cells: Sequence[str]) -> str:
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"


def _head(cells: Sequence[str]) -> list[str]:
    return [_line(cells), "|" + "---|" * len(cells)]


def table(
    every: Sequence[tuple[Found, str, Sequence[str]]], sets: Sequence[str], gpu: Mapping[str, Any], batch: int
) -> str:
    """Both tables as Markdown, narrow enough for a page of 900 pixels."""
    images = {name: one["images"] for found, _, _ in every for name, one in found["sets"].items()}
    lines = _head(["model, input", "images", "mAP float", "mAP INT8", "lost (95 % interval)"])
    for found, title, trained in every:
        lines += losses(found, f"{title}, {found['size']}", sets, trained, images)
    cells = ["model, input", "layers in float", "multiplications in float"]
    lines += ["", *_head([*cells, "OpenVINO float, ms", "OpenVINO INT8, ms", "H200 FP16, ms", "H200 INT8, ms"])]
    lines += [cost(found, f"{title}, {found['size']}", gpu, batch) for found, title, _ in every]
    return "\n".join(lines)


def pairs(texts: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE, by name."""
    return {name: value for name, _, value in (text.partition("=") for text in texts)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tables in Markdown."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("models", nargs="+", metavar="MODEL[:HEAD][=INT8]")
    p.add_argument("--images", required=True, help="calibration images, in none of the sets")
    p.add_argument("--set", action="append", required=True, metavar="NAME=FOLDER", dest="sets")
    p.add_argument("--out", required=True, type=Path)
    p.add_argument("--trained", action="append", default=[], metavar="MODEL=NAME,…", help="sets not to judge it on")
    p.add_argument("--title", action="append", default=[], metavar="MODEL=TEXT", help="what the table calls it")
    p.add_argument("--label-names", metavar="FILE", help="class names of the labels, where a model has others")
    p.add_argument("--auto", action="store_true", help="keep the fewest layers in float that pass the gate")
    p.add_argument("--max-drop", type=float, default=MAX_DROP)
    p.add_argument(
        "--speed", action="store_true", help="measure OpenVINO's milliseconds, on an idle machine or with --threads 1"
    )
    p.add_argument("--threads", type=int, help="OpenVINO's threads")
    p.add_argument("--gpu-json", type=Path, metavar="FILE", help="engine.json of tools/gpu_suite.py")
    p.add_argument("--gpu-batch", type=int, default=1, help="batch whose milliseconds are told (default 1)")
    args = p.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    sets = {name: Path(folder) for name, folder in pairs(args.sets).items()}
    titles, trained = pairs(args.title), pairs(args.trained)
    gpu: Found = json.loads(args.gpu_json.read_text()) if args.gpu_json else {}
    every = []
    for item in map(Item.of, args.models):
        seen = trained.get(item.name, "").split(",")
        print(f"{item.name} …", file=sys.stderr, flush=True)
        every.append((measured(item, args, sets, seen), titles.get(item.name, item.name), seen))
    print(table(every, list(sets), gpu, args.gpu_batch))
    return 0


if __name__ == "__main__":
    sys.exit(main())
