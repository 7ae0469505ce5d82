"""`streamd build MODEL --out PLAN`: builds a TensorRT engine from an ONNX model and checks its accuracy."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamd.cli.console import add_head_option, positive, say
from streamd.cli.gate import PlanGate, add_gate_options, gate_of
from streamd.engine.model import PLAN_SUFFIXES, model_file
from streamd.engine.sidecar import Sidecar, read_sidecar
from streamd.errors import ConfigError
from streamd.security.redact import redact
from streamd.telemetry.logs import configure
from streamd.types import Float32Array

if TYPE_CHECKING:
    from streamd.engine.tensorrt.calibrator import Calibration
    from streamd.engine.tensorrt.job import BuildOptions, Job
    from streamd.models.pictures import Feeder, Pictures


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    p = subparsers.add_parser(
        "build",
        help="build a TensorRT plan from an ONNX model",
        description="Builds a TensorRT plan for this GPU and this version of TensorRT. With --eval-images, writes "
        "nothing (exit code 7) if the plan lost too much accuracy.",
    )
    p.add_argument("model", metavar="MODEL", help="ONNX model, float or with Q/DQ nodes (see quantize)")
    p.add_argument("--out", required=True, metavar="PLAN", help="plan to write: .plan, .engine or .trt")
    p.add_argument(
        "--precision",
        choices=("auto", "fp32", "fp16", "int8", "mixed"),
        default="auto",
        help="auto (default): int8 with calibration images; for a model with Q/DQ nodes int8 or fp16, whichever is "
        "faster here (int8 without the float model); otherwise fp16; mixed: int8 or fp16 by layer of a model with "
        "Q/DQ nodes, whichever is faster (up to TensorRT 10)",
    )
    p.add_argument(
        "--float-model",
        metavar="MODEL",
        help="the float model that a quantized MODEL was made from (default: the one that quantize noted, if it is in "
        "the same folder)",
    )
    p.add_argument(
        "--batch",
        nargs=3,
        type=int,
        metavar=("MIN", "BEST", "MAX"),
        help="batch sizes to build for (default 1 8 16, or the model's own)",
    )
    p.add_argument(
        "--input-size", nargs=2, type=int, metavar=("H", "W"), help="input size, for a model with a dynamic one"
    )
    p.add_argument(
        "--profiles",
        type=positive,
        default=1,
        metavar="N",
        help="optimization profiles (default 1); before TensorRT 10, each batch in flight needs its own",
    )
    p.add_argument(
        "--workspace",
        type=positive,
        default=1024,
        metavar="MB",
        help="workspace memory for tactics, in MiB (default 1024)",
    )
    p.add_argument(
        "--effort",
        type=int,
        choices=range(6),
        help="how thoroughly TensorRT searches for the fastest plan: from 0, built soonest, to 5 (default: TensorRT's "
        "own, 3); 8.5 has 1 to 3, RTX ignores it",
    )
    p.add_argument("--timing-cache", metavar="FILE", help="timing cache to reuse and extend: later builds are faster")
    p.add_argument(
        "--version-compatible",
        action="store_true",
        help="allow newer TensorRT versions to run the plan (8.6 and later)",
    )
    p.add_argument(
        "--hardware-compatible",
        action="store_true",
        help="allow any GPU from Ampere on to run the plan (8.6 and later)",
    )
    p.add_argument("--device", type=int, default=0, metavar="N", help="CUDA device ordinal (default 0)")
    add_head_option(p)
    calibration = p.add_argument_group("INT8 calibration of a float model (TensorRT 10 and earlier)")
    calibration.add_argument(
        "--calibrate-images", metavar="DIR|VIDEO|URL", help="calibration images, similar to what the cameras will see"
    )
    calibration.add_argument(
        "--calibrate-count", type=positive, default=512, metavar="N", help="use at most N images (default 512)"
    )
    calibration.add_argument(
        "--calibrate-batch", type=positive, default=8, metavar="N", help="images per calibration batch (default 8)"
    )
    calibration.add_argument(
        "--calibration-cache", metavar="FILE", help="TensorRT calibration cache, reused while it matches"
    )
    add_gate_options(p)


def _calibration(args: argparse.Namespace, path: Path) -> Calibration | None:
    """The calibration that the options request.

    Raises:
        ConfigError: options that contradict each other.
    """
    if args.calibrate_images is None and args.calibration_cache is None:
        return None
    from streamd.engine.tensorrt.calibrator import Calibration
    from streamd.engine.tensorrt.job import BuildOptions, prepare

    cache = Path(args.calibration_cache) if args.calibration_cache else None
    # Only the network's input: whether the precision is available is checked later.
    bare = prepare(path, BuildOptions(precision="fp32", input_size=_pair(args.input_size), device=args.device))
    fixed = bare.spec.input.shape[0]
    size = fixed if fixed > 0 else args.calibrate_batch
    if args.calibrate_images is None:
        assert cache is not None
        return Calibration(_cache_sha256(cache), size, None, cache, bare.recipe.model_sha256)
    from streamd.models.pictures import Feeder, Pictures, refuse_shared

    try:
        pictures = Pictures(args.calibrate_images, args.calibrate_count)
    except ConfigError as error:
        raise ConfigError(str(error).replace("--images", "--calibrate-images", 1)) from error
    if args.eval_images is not None:
        refuse_shared(pictures, Pictures(args.eval_images, 1 << 20), "--calibrate-images", "--eval-images")
    feeder = Feeder(bare.spec)
    seen = pictures.sha256()
    what = f"{bare.recipe.model_sha256} {bare.recipe.tensorrt} {bare.spec} {size} {seen}"
    return Calibration(
        # A live stream never repeats: its calibration is not cached, since a later build would reuse it.
        hashlib.sha256(what.encode()).hexdigest() if seen is not None else "",
        size,
        lambda: _batches(feeder, pictures, size),
        cache,
        bare.recipe.model_sha256,
    )


def _cache_sha256(cache: Path) -> str:
    """Of its content: another cache under the same name makes another plan."""
    try:
        return hashlib.sha256(cache.read_bytes()).hexdigest()
    except OSError:
        return ""  # the build says what is wrong with it


def _batches(feeder: Feeder, pictures: Pictures, size: int) -> Iterator[Float32Array]:
    """Full batches only: the calibrator accepts no others.

    Raises:
        ConfigError: there are not enough pictures for one.
    """
    from streamd.cli.console import progress

    refused: list[str] = []
    done = 0
    with progress() as report:
        for batch in feeder.batches(pictures.frames(), size, refused):
            if len(batch) == size:
                done += size
                report("calibrating", done, pictures.limit)
                yield batch
    for message in (*pictures.unreadable, *refused):
        print(f"streamd: {message}; skipped", file=sys.stderr)
    if not done:
        raise ConfigError(
            f"--calibrate-images {redact(pictures.where)}: fewer readable images than one batch of {size}; give "
            "more images, or a smaller --calibrate-batch"
        )


def _pair(values: Sequence[int] | None) -> tuple[int, int] | None:
    return (values[0], values[1]) if values else None


def _options(args: argparse.Namespace, calibration: Calibration | None) -> BuildOptions:
    from streamd.engine.tensorrt.job import BuildOptions

    return BuildOptions(
        precision=args.precision,
        batch=tuple(args.batch) if args.batch else None,
        profiles=args.profiles,
        workspace_mb=args.workspace,
        timing_cache=Path(args.timing_cache) if args.timing_cache else None,
        version_compatible=args.version_compatible,
        hardware_compatible=args.hardware_compatible,
        effort=args.effort,
        device=args.device,
        input_size=_pair(args.input_size),
        calibration=calibration,
        float_model=model_file(args.float_model) if args.float_model is not None else None,
    )


def _job(args: argparse.Namespace) -> Job:
    """Rejects, before the build starts, everything that can be rejected by then."""
    from streamd.engine.tensorrt.job import prepare

    path = model_file(args.model)
    if path.suffix.lower() in PLAN_SUFFIXES or path.suffix == ".xml":
        raise ConfigError(f"model {path}: build starts from an ONNX model, not from a {path.suffix[1:]}")
    out = Path(args.out)
    if out.suffix not in PLAN_SUFFIXES:
        raise ConfigError(f"--out {out}: not a plan's file name; it must end in {' or '.join(PLAN_SUFFIXES)}")
    options = _options(args, None)
    if args.calibrate_images is not None or args.calibration_cache is not None:
        # Checked first without pictures, so that an unavailable precision is rejected before they are read.
        from streamd.engine.tensorrt.calibrator import Calibration

        prepare(path, replace(options, calibration=Calibration("")))
        options = replace(options, calibration=_calibration(args, path))
    return _with_head(prepare(path, options), args.head)


def _with_head(job: Job, kind: str | None) -> Job:
    """The job with the head that `--head` declares, for the plan's sidecar.

    Raises:
        ConfigError: the sidecar declares a head of that kind, but it is invalid.
        ModelError: the rows are not decoded and nothing declares it.
    """
    from streamd.heads.select import check_decoded, declared

    outputs = replace(job.spec, outputs=job.onnx.output_tensors)
    check_decoded(kind, outputs, ends_in_sigmoid=job.onnx.ends_in_sigmoid)
    head = declared(kind, job.spec)
    if head is not None:
        body = head.model_dump(mode="json", exclude_defaults=True) | {"kind": kind}
        return replace(job, spec=replace(job.spec, head=body))
    return job


def _summary(job: Job, out: Path, sidecar: Sidecar, verdict: str) -> None:
    made = sidecar.provenance
    assert made is not None
    assert made.profile is not None
    if made.compared_ms:
        from streamd.engine.tensorrt.fastest import verdict as compared

        print(f"{compared(made.compared_ms)}: {made.precision} is kept")
    elif job.onnx.quantized and job.floating is None and made.precision == "int8":
        source = read_sidecar(job.onnx.path).provenance
        name = Path(source.source).name if source is not None and source.source else "that it was made from"
        print(f"FP16 was not compared: the float model {name} is not beside {job.onnx.path}; --float-model names it")
    effort = "" if made.effort is None else f", effort {made.effort}"
    say(
        f"{out}: {out.stat().st_size / 2**20:.1f} MiB, {made.precision} ({made.method}), batches "
        f"{'/'.join(map(str, made.profile))}, TensorRT {made.tensorrt}, for {made.gpu}{effort}, built in "
        f"{made.build_seconds:.1f} s"
    )
    print(verdict)


def run(args: argparse.Namespace) -> int:
    """Builds, checks the accuracy if requested, and writes both plan and sidecar, or neither."""
    configure("info")
    from streamd.engine.sidecar import write_sidecar
    from streamd.engine.tensorrt.builder import build
    from streamd.engine.tensorrt.plans import StagedPlan

    gate: PlanGate | None = gate_of(args)
    job = _job(args)
    if args.timing_cache and not job.trt.has_timing_cache:
        print(f"streamd: --timing-cache: ignored; {job.trt} does not time tactics while building", file=sys.stderr)
    out = Path(args.out)
    with StagedPlan(out) as staged:
        plan, sidecar = build(job)
        sidecar = staged.write(memoryview(plan), sidecar)
        verdict = "accuracy: not checked; give --eval-images (and --labels, if you have them)"
        if gate is not None:
            sidecar, verdict = gate.check(staged.path, sidecar, job)
            write_sidecar(staged.path, sidecar)
        staged.commit()
    _summary(job, out, sidecar, verdict)
    return 0
