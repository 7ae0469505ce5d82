#!/usr/bin/env python3
"""The table of model families in docs/accuracy.md: accuracy in float and INT8 on several sets of images, and speed.

    python tools/family_table.py MODEL[:HEAD][=INT8]… --images CALIBRATION --set NAME=FOLDER … --out DIR
        [--speed] [--gpu-json OUT/engine.json] [--trained MODEL=NAME[,NAME]…] [--title MODEL=TEXT]

Each FOLDER has `images` and `labels`. A model says in its sidecar how it is fed. INT8 models are made as `streamd
quantize` makes them by default, unless one is given, and are written to DIR whatever they lost, with one JSON file for
each model; what is already there is not made again. The first set is the gate's. Speed is that of OpenVINO on one
picture at a time, float and INT8 in alternating rounds. GPU times are those that `tools/gpu_suite.py engine` wrote of
plans called like the two models' files (`yolov5n.plan`, `yolov5n_int8.plan`); where there is none, the column is
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


def _on(found: Found, of: str, form: str, trained: Sequence[str]) -> str:
    """The mAP of a form of a model on a set, and what INT8 lost there."""
    if of not in found["sets"]:
        return "in training" if of in trained else ""
    one = found["sets"][of]
    if form == "float":
        return f"{one['float']['map']:.4f}"
    interval = one["interval"]
    spread = "" if interval is None else f" ({interval['low']:.4f} to {interval['high']:.4f})"
    return f"{one['int8']['map']:.4f}, {one['drop']:.4f}{spread}".replace("-", "−")


def _mean(judged: Sequence[Found]) -> str:
    """What INT8 lost in the mean of several sets, with its interval."""
    if len(judged) < 2:
        return ""
    text = f"{sum(one['drop'] for one in judged) / len(judged):.4f}"
    losses = [np.array(one.get("losses", ())) for one in judged]
    if all(len(lost) for lost in losses):
        text += " ({:.4f} to {:.4f})".format(*mean_ends(losses))
    return text.replace("-", "−")


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def rows(
    found: Found, title: str, sets: Sequence[str], trained: Sequence[str], gpu: Mapping[str, Any], batch: int
) -> list[str]:
    """Two lines of Markdown: the model in float, and in INT8."""
    mean, times = _mean([found["sets"][name] for name in sets if name in found["sets"]]), found.get("speed", {})
    kept = f"{len(found['float_layers'])} of {found['layers']}"
    if found["float_layers"]:
        kept += f", {found['float_share'] * 100:.1f} %"
    plans = {"float": found["model"], "int8": Path(found["int8"].removeprefix(BUILTIN)).stem}
    out = []
    for form, about in (("float", [f"{title}, {found['size']}", ""]), ("int8", ["INT8", kept])):
        cells = [*about, *(_on(found, of, form, trained) for of in sets)]
        cells += [mean if form == "int8" else "", _ms(times.get(f"{form}_best_ms"))]
        out.append(_line([*cells, _ms(gpu_ms(gpu, plans[form], batch))]))
    return out


def _line(cells: Sequence[str]) -> str:
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"


def table(
    every: Sequence[tuple[Found, str, Sequence[str]]], sets: Sequence[str], gpu: Mapping[str, Any], batch: int
) -> str:
    """The whole table as Markdown."""
    images = {name: found["sets"][name] for found, _, _ in every for name in found["sets"]}
    head = ["model", "layers in float, of the multiplications"]
    head += [f"{images[name]['images']:,} of {name}" if name in images else name for name in sets]
    head += ["lost in the mean", "OpenVINO, ms", "H200, ms"]
    lines = [_line(head), "|" + "---|" * len(head)]
    for found, title, trained in every:
        lines += rows(found, title, sets, trained, gpu, batch)
    return "\n".join(lines)


def pairs(texts: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE, by name."""
    return {name: value for name, _, value in (text.partition("=") for text in texts)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table in Markdown."""
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
