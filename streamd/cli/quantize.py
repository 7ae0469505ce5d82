"""`streamd quantize MODEL --images … --out OUT`: an INT8 model, written only where its accuracy survived."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamd.cli.console import add_engine_options, add_head_option, engine_of, positive, progress, share
from streamd.telemetry.logs import configure

if TYPE_CHECKING:
    from streamd.models.quantize import Result


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    p = subparsers.add_parser(
        "quantize",
        help="make an INT8 model (explicit Q/DQ) and check its accuracy",
        description="Calibrates a float ONNX model through the daemon's own letterbox and writes an INT8 model with "
        "explicit Q/DQ pairs, for TensorRT and OpenVINO alike. Refuses (exit code 7) to write one whose accuracy "
        "fell by more than --max-drop, or, without --labels, whose detections disagree with the float model's.",
    )
    p.add_argument("model", metavar="MODEL", help="float ONNX model")
    p.add_argument(
        "--images", required=True, metavar="DIR|VIDEO|URL", help="calibration pictures: a folder, a video or a stream"
    )
    p.add_argument("--out", required=True, metavar="OUT", type=Path, help="the INT8 model; its sidecar is OUT.json")
    p.add_argument("--batch", type=positive, default=8, metavar="N", help="pictures a batch (default 8)")
    p.add_argument("--batches", type=positive, default=16, metavar="N", help="batches at most (default 16)")
    p.add_argument("--every", type=positive, default=10, metavar="N", help="every N-th frame of a video (default 10)")
    p.add_argument(
        "--method",
        choices=("minmax", "entropy", "percentile", "mse"),
        default="mse",
        help="how activations' ranges are chosen (default mse)",
    )
    p.add_argument(
        "--float-layers", nargs="+", default=[], metavar="LAYER", help="layers to leave in float; * matches anything"
    )
    p.add_argument("--labels", metavar="DIR|JSON", help="labels of the evaluation images: measures mAP")
    p.add_argument("--eval-images", metavar="DIR", help="images to measure on. Default: those of --images")
    p.add_argument("--max-drop", type=share, default=0.01, metavar="MAP", help="mAP that may be lost (default 0.01)")
    p.add_argument(
        "--min-agreement",
        type=share,
        default=0.95,
        metavar="SHARE",
        help="without labels: share of boxes that the float and the INT8 model must both find (default 0.95)",
    )
    p.add_argument(
        "--sensitivity",
        nargs="?",
        const="noise",
        choices=("noise", "map"),
        help="show what quantising each layer alone does: noise at the outputs (default), or the gate's own measure",
    )
    p.add_argument(
        "--compact",
        action="store_true",
        help="store weights as INT8: a quarter of the size, the same values",
    )
    p.add_argument("--auto", action="store_true", help="leave the fewest layers in float that the gate needs")
    p.add_argument("--force", action="store_true", help="write the model whatever the gate says; the sidecar tells")
    p.add_argument("--cache", type=Path, metavar="FILE", help="calibration cache. Default: in the user's cache folder")
    p.add_argument("--no-cache", action="store_true", help="neither read nor write the calibration cache")
    p.add_argument("--json", action="store_true", help="JSON on standard output")
    add_head_option(p)
    add_engine_options(p)


def _print(result: Result) -> None:
    if result.sensitivity:
        measure = "drop" if result.sensitivity[0].drop is not None else "SQNR dB"
        print(f"{measure:>9}  layer (quantised alone, the most harmful first)")
        for harm in result.sensitivity:
            value = harm.drop if harm.drop is not None else harm.sqnr_db
            print(f"{'-' if value is None else f'{value:.4g}':>9}  {harm.layer}")
    source = "from the cache" if result.cached else f"on {result.pictures} pictures"
    print(f"calibrated {source}; {result.layers - len(result.float_layers)} of {result.layers} convolutions in INT8")
    if result.float_layers:
        print(f"in float: {', '.join(result.float_layers)}")
    verdict = result.verdict
    if verdict.accuracy:
        a = verdict.accuracy
        print(
            f"mAP {a['map_float']:.4f} -> {a['map']:.4f} ({-a['map_drop']:+.4f}), "
            f"mAP50 {a['map50_float']:.4f} -> {a['map50']:.4f}"
        )
    if verdict.agreement is not None:
        print(f"{verdict.agreement:.1%} of boxes agree with the float model's")
    if result.forced:
        print(f"forced although {verdict.refusal}")
    print(f"wrote {result.out} (SHA-256 {result.sha256[:12]}…)")


def run(args: argparse.Namespace) -> int:
    """Quantises. Pictures that cannot be read are named on standard error; the others count."""
    configure("warning")
    from streamd.models.quantize import Request, quantize

    request = Request(
        model=args.model,
        images=args.images,
        out=args.out,
        batch=args.batch,
        batches=args.batches,
        every=args.every,
        method=args.method,
        float_layers=tuple(args.float_layers),
        labels=args.labels,
        eval_images=args.eval_images,
        max_drop=args.max_drop,
        min_agreement=args.min_agreement,
        auto=args.auto,
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
