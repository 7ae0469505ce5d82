"""`streamd quantize MODEL --images … --out OUT`: an INT8 model, written only if its accuracy holds up."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamd.cli.console import (
    add_engine_options,
    add_head_option,
    add_judging_options,
    engine_of,
    positive,
    progress,
    say,
    share,
)
from streamd.telemetry.logs import configure

if TYPE_CHECKING:
    from streamd.models.request import Result


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    p = subparsers.add_parser(
        "quantize",
        help="quantize a model to INT8 (explicit Q/DQ) and check its accuracy",
        description="Calibrates a float ONNX model with the daemon's own preprocessing and writes an INT8 model with "
        "explicit Q/DQ pairs for both TensorRT and OpenVINO. Writes nothing (exit code 7) if mAP falls by more "
        "than --max-drop or, without --labels, if the detections disagree with the float model's.",
    )
    p.add_argument("model", metavar="MODEL", help="float ONNX model")
    p.add_argument(
        "--images", required=True, metavar="DIR|VIDEO|URL", help="calibration images: a folder, a video or a stream"
    )
    p.add_argument(
        "--out", required=True, metavar="OUT", type=Path, help="INT8 model to write; its sidecar is OUT.json"
    )
    p.add_argument("--batch", type=positive, default=8, metavar="N", help="images per batch (default 8)")
    p.add_argument("--batches", type=positive, default=16, metavar="N", help="maximum number of batches (default 16)")
    p.add_argument(
        "--every", type=positive, default=10, metavar="N", help="use every N-th frame of a video (default 10)"
    )
    p.add_argument(
        "--method",
        choices=("minmax", "entropy", "percentile", "mse"),
        default="mse",
        help="how activation ranges are chosen (default mse)",
    )
    p.add_argument(
        "--rounding",
        choices=("layer", "nearest"),
        default="layer",
        help="how weights are rounded: together, so that each layer's output stays what it was (default), or each to "
        "the nearest step",
    )
    p.add_argument(
        "--ranges",
        choices=("centred", "symmetric"),
        default="centred",
        help="centred: activations that are hardly ever negative (SiLU, ReLU) are moved to the middle of their range "
        "where that is exact, which halves their steps (default); symmetric: they are not",
    )
    p.add_argument(
        "--finetune",
        nargs="?",
        type=positive,
        const=500,
        default=0,
        metavar="STEPS",
        help="train weights, biases and scales on the calibration images to come near the float model's outputs, "
        "without labels (default 500 steps; minutes; needs the extra finetune). Nearer is not always more accurate: "
        "measure it on labelled images",
    )
    p.add_argument(
        "--float-layers", nargs="+", default=[], metavar="LAYER", help="layers to keep in float; * matches anything"
    )
    p.add_argument(
        "--float-share",
        type=share,
        default=0.05,
        metavar="SHARE",
        help="share of the multiplications that may stay in float, in layers that stand out by the noise they cause at "
        "the outputs; many models have none (default 0.05; 0: all in INT8)",
    )
    p.add_argument("--labels", metavar="DIR|JSON", help="labels of the evaluation images; enables measuring mAP")
    p.add_argument(
        "--eval-images",
        metavar="DIR",
        help="images to measure accuracy on, none of them among --images. Default: some of --images, held out",
    )
    add_judging_options(p)
    p.add_argument(
        "--min-agreement",
        type=share,
        default=0.95,
        metavar="SHARE",
        help="without labels: share of boxes that both the float and the INT8 model must find (default 0.95)",
    )
    p.add_argument(
        "--sensitivity",
        nargs="?",
        const="noise",
        choices=("noise", "map"),
        help="show the effect of quantizing each layer alone: output noise (default), or the gate's own measure",
    )
    p.add_argument(
        "--compact",
        action="store_true",
        help="store weights as INT8: a quarter of the size with identical values",
    )
    p.add_argument(
        "--auto",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="keep the fewest layers in float that pass the gate, searched with the gate itself. Default: only where "
        "the gate refuses the model, searched on other pictures, up to half of the multiplications; --no-auto: refuse",
    )
    p.add_argument(
        "--force", action="store_true", help="write the model even if the gate refuses it; the sidecar records this"
    )
    p.add_argument(
        "--cache", type=Path, metavar="FILE", help="calibration cache file. Default: in the user's cache folder"
    )
    p.add_argument("--no-cache", action="store_true", help="do not read or write the calibration cache")
    p.add_argument("--json", action="store_true", help="print JSON on standard output")
    add_head_option(p)
    add_engine_options(p)


def _print(result: Result) -> None:
    if result.sensitivity:
        measure = "drop" if result.sensitivity[0].drop is not None else "SQNR dB"
        print(f"{measure:>9}  layer (quantized alone, most harmful first)")
        for harm in result.sensitivity:
            value = harm.drop if harm.drop is not None else harm.sqnr_db
            print(f"{'-' if value is None else f'{value:.4g}':>9}  {harm.layer}")
    source = "from the cache" if result.cached else f"on {result.pictures} images"
    print(f"calibrated {source}; {result.layers - len(result.float_layers)} of {result.layers} convolutions in INT8")
    if result.float_layers:
        say(f"in float: {', '.join(result.float_layers)}", 10)
    for step in result.escalation:
        outcome = "passed" if step.verdict.passed else f"refused, {step.verdict.refusal}"
        print(f"tried: {len(step.float_layers)} in float, {step.share:.1%} of the multiplications: {outcome}")
    if result.finetuning is not None:
        before, after = result.finetuning
        gained = f"{1 - after / before:.0%} nearer to the float model" if after < before else "no nearer, not used"
        print(f"fine-tuned: {gained} on calibration images left out of it")
    verdict = result.verdict
    if verdict.accuracy:
        a = verdict.accuracy
        print(
            f"mAP {a['map_float']:.4f} -> {a['map']:.4f} ({-a['map_drop']:+.4f}), "
            f"mAP50 {a['map50_float']:.4f} -> {a['map50']:.4f}"
        )
    if verdict.interval is not None:
        say(f"mAP {verdict.interval}")
    if verdict.undecided is not None:
        say(f"not shown: {verdict.undecided}")
    if verdict.agreement is not None:
        print(f"{verdict.agreement:.1%} of boxes agree with the float model's")
    if result.forced:
        print(f"forced although {verdict.refusal}")
    print(f"wrote {result.out} (SHA-256 {result.sha256[:12]}…)")


def run(args: argparse.Namespace) -> int:
    """Quantizes. Images that cannot be read are named on standard error and skipped."""
    configure("warning")
    from streamd.models.quantize import quantize
    from streamd.models.request import Request

    request = Request(
        model=args.model,
        images=args.images,
        out=args.out,
        batch=args.batch,
        batches=args.batches,
        every=args.every,
        method=args.method,
        rounding=args.rounding,
        ranges=args.ranges,
        finetune=args.finetune,
        float_layers=tuple(args.float_layers),
        float_share=args.float_share,
        labels=args.labels,
        eval_images=args.eval_images,
        max_drop=args.max_drop,
        prove=args.prove,
        classes=tuple(args.classes) if args.classes else None,
        min_agreement=args.min_agreement,
        auto=bool(args.auto),
        escalate=args.auto is not False,
        compact=args.compact,
        sensitivity=args.sensitivity,
        force=args.force,
        cache=args.cache,
        use_cache=not args.no_cache,
        head=args.head,
        engine=engine_of(args),
    )
    with progress() as report:
        result = quantize(request, report)
    for message in result.unreadable:
        print(f"streamd: {message}", file=sys.stderr)
    if args.json:
        print(json.dumps(result.as_json()))
    else:
        _print(result)
    return 0
