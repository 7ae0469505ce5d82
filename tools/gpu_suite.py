#!/usr/bin/env python3
"""Runs the GPU tests and benchmarks on a fresh machine, one step or all of them, and prints one table at the end.

    python tools/gpu_suite.py STEP… --plans PLAN… --out DIR [--clips H264.mp4 HEVC.mp4] [--workers 1 4 8]

Steps:
  build     the plans that --build names, at each --effort, --jobs at a time; the steps after it measure them, too
  tests     pytest -m gpu with STREAMD_REQUIRE_GPU=1
  torch     PyTorch with the same network, by --torch PYTHON MODEL
  engine    each plan alone: device time a batch with and without CUDA graphs, throughput with every slot in flight
  layers    each plan's slowest layers at each of --batches
  map       COCO accuracy of each plan through the daemon's own path (--images, --labels)
  loss      what plans lose against their float models (--float), picture by picture, on each --set
  nvdec     hardware decoding alone in each of --workers processes; for 16 streams also with frames copied to the host
  flow      the daemon from file to subscriber: --counts streams as fast as possible, with each of --workers
  tracking  --turns times with and without tracking, and the share of the rate that is left with it; in one process,
            --pairs of daemons are measured in turns of --seconds, one of them stopped
  paced     the daemon with --paced 25 fps streams: how many before the latency or a drop says stop; each of --workers
  live      one paced stream: latency by stage
  copyback  16 streams as fast as possible: frames left on the GPU, copied to the host (tools/copyback), decoded there
  memory    the heaviest case for --minutes: memory of all processes and of the device, minute by minute

Each value is written to OUT/STEP.json once it is measured; the table is printed last.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import bench
from gpu_build import Wanted, build_all, clock_rates, effort_of
from gpu_build import torch as torch_times
from gpu_engine import engine_times, layer_times
from gpu_machine import Gpu, decode_alone
from gpu_pairs import loss as losses
from gpu_pairs import say_losses, say_shares, with_and_without
from gpu_report import figures, print_table
from gpu_turns import alternating, say_turns

ROOT = Path(__file__).resolve().parent.parent
Table = dict[str, Any]


def _write(args: argparse.Namespace, step: str, found: Table) -> None:
    (args.out / f"{step}.json").write_text(json.dumps(found, indent=1) + "\n")


def _keep(
    args: argparse.Namespace, step: str, found: Table, name: str, result: Table,
    say: Callable[[Table], str] = json.dumps,
) -> None:  # fmt: skip
    """Stores and prints one value, so that an aborted run keeps its results."""
    found[name] = result
    _write(args, step, found)
    print(f"{name:<44}", say(result), flush=True)


def _try(
    args: argparse.Namespace, step: str, found: Table, name: str, measure: Callable[[], Table],
    say: Callable[[Table], str] = json.dumps,
) -> None:  # fmt: skip
    """Like `_keep`, but a plan that fails must not affect the others' results."""
    try:
        result = measure()
    except (Exception, SystemExit) as error:  # noqa: BLE001
        result = {"error": str(error)[:200]}
    _keep(args, step, found, name, result, say)


def build(args: argparse.Namespace) -> Table:
    """The plans that --build names; the steps after it measure them, too."""
    found: Table = {}
    wanted = [each.at(effort) for each in args.build for effort in args.effort]
    made = build_all(
        wanted, args.out, jobs=args.jobs, limit_s=args.build_limit,
        keep=lambda name, result: _keep(args, "build", found, name, result),
        preload=clock_rates(args.out) if args.keep_clock_rates else None,
    )  # fmt: skip
    args.plans += made
    return found


def torch(args: argparse.Namespace) -> Table:
    """PyTorch with the same network."""
    found = torch_times(args.torch[0], Path(args.torch[1]), args.batches, args.out) if args.torch else {}
    print(json.dumps(found))
    return found


def _gpu_tests() -> list[str]:
    """The files that hold tests marked gpu: others may need packages that a GPU machine does not have."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(file.relative_to(ROOT)) for file in files if "mark.gpu" in file.read_text()]


def tests(args: argparse.Namespace) -> Table:
    """The suite marked gpu."""
    environment = os.environ | {"STREAMD_REQUIRE_GPU": "1", "CI": ""}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--timeout", "120", *_gpu_tests(), *args.pytest],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    (args.out / "tests.log").write_text(done.stdout + done.stderr)
    print((done.stdout + done.stderr)[-args.tail :])
    return {"exit": done.returncode, "summary": done.stdout.strip().splitlines()[-1:]}


def engine(args: argparse.Namespace) -> Table:
    """Each plan alone."""
    found: Table = {}
    for plan in args.plans:
        for graphs in ("on", "off"):
            _try(args, "engine", found, f"{plan.stem} graphs {graphs}", partial(engine_times, plan, graphs, args.conf))
    return found


def layers(args: argparse.Namespace) -> Table:
    """Time per layer of a plan: all layers in the file, the slowest are printed."""
    found: Table = {}

    def say(result: Table) -> str:
        return json.dumps({key: value for key, value in result.items() if key != "all"})

    for plan in args.plans:
        for batch in args.batches:
            _try(args, "layers", found, f"{plan.stem} batch {batch}", partial(layer_times, plan, batch), say)
    return found


def _accuracy(args: argparse.Namespace, plan: Path) -> Table:
    from streamd.engine import ModelSettings
    from streamd.models.dataset import open_dataset
    from streamd.models.evaluate import COCO_DETECT, Detector, evaluate

    with Detector(ModelSettings(path=str(plan)), COCO_DETECT, {"kind": "tensorrt"}) as d:
        accuracy = evaluate(d, open_dataset(args.images, args.labels, d.labels))
    return {k: v for k, v in accuracy.as_json().items() if isinstance(v, (int, float))}


def map_(args: argparse.Namespace) -> Table:
    """COCO accuracy."""
    found: Table = {}
    for plan in args.plans:
        if "relu" not in plan.stem:  # random weights
            _try(args, "map", found, plan.stem, partial(_accuracy, args, plan))
    return found


def loss(args: argparse.Namespace) -> Table:
    """What plans lose."""
    found: Table = {}
    plans = {plan.stem: plan for plan in args.plans}
    sets = {name: Path(folder) for name, folder in args.sets}
    for name, model in args.float:
        if name not in plans or not sets:
            raise ValueError(f"--float {name}=…: no plan of --plans or --build is called {name}, or there is no --set")

        def keep(result: Table, name: str = name) -> None:
            _write(args, "loss", {**found, name: result})

        measure = partial(losses, plans[name], model, sets, engine=args.engine, keep=keep)
        _try(args, "loss", found, name, measure, say_losses)
    return found


def nvdec(args: argparse.Namespace) -> Table:
    """Hardware decoding alone."""
    found: Table = {}
    for clip, processes, streams in _cases(args):
        result = decode_alone(clip, streams, args.seconds, processes=processes)
        if streams == 16:
            copied = decode_alone(clip, streams, args.seconds, owned=False, processes=processes)
            result["copied_back_fps"] = copied["fps"]
        name = f"{clip.stem} × {streams}, {processes} process{'es' * (processes > 1)}"
        _keep(args, "nvdec", found, name, result)
    return found


def _daemon(
    args: argparse.Namespace, clip: Path, streams: int, *, live: bool, seconds: float | None = None, **more: Any
) -> Table:
    try:
        with Gpu(args.devices) as gpu:
            found = bench.streamd(_options(args, clip, streams, live=live, **more), seconds or args.seconds)
    except SystemExit as error:
        return {"error": str(error)}
    return found | {"gpu_decoder_mib": gpu.means, "device_mib_by_minute": gpu.mib_by_minute}


def _options(args: argparse.Namespace, clip: Path, streams: int, *, live: bool, **more: Any) -> argparse.Namespace:
    return argparse.Namespace(
        **{
            "model": str(args.plans[0]), "video": str(clip), "streams": streams, "live": live, "engine": args.engine,
            "decode": args.decode, "batch": None, "age_ms": args.age_ms, "hint": None, "requests": None, "workers": 1,
            "isolation": "thread", "py_spy": args.py_spy, "devices": args.devices, "max_fps": args.max_fps,
            "viewer": args.viewer, "config": args.config, "stream": args.stream,
            "mps": args.mps and more.get("workers", 1) > 1,
        }
        | more
    )  # fmt: skip


def _name(clip: Path, streams: int, workers: int, what: str = "") -> str:
    return f"{clip.stem} × {streams}, {workers} worker{'s' * (workers > 1)}{what}"


def _cases(args: argparse.Namespace) -> Iterator[tuple[Path, int, int]]:
    """Each clip with each number of processes, and of streams that is enough for these."""
    for clip in args.clips:
        for workers in args.workers:
            for streams in [n for n in args.counts if n >= workers]:
                yield clip, workers, streams


def flow(args: argparse.Namespace) -> Table:
    """As fast as possible, from file to subscriber."""
    found: Table = {}
    for clip, workers, streams in _cases(args):
        result = _daemon(args, clip, streams, live=False, workers=workers)
        _keep(args, "flow", found, _name(clip, streams, workers), result, figures)
    return found


def tracking(args: argparse.Namespace) -> Table:
    """What is left of the rate with tracking."""
    found: Table = {}
    for clip, workers, streams in _cases(args):
        name = _name(clip, streams, workers)
        if workers > 1:  # two daemons with MPS servers of their own cannot share a GPU
            run = partial(_daemon, args, clip, streams, live=False, workers=workers)
            result = with_and_without(run, args.config, "tracking", args.turns)
            _keep(args, "tracking", found, name, result, say_shares)
            continue
        measure = partial(
            alternating, _options(args, clip, streams, live=False), args.config, "tracking",
            streams=streams, pairs=args.pairs, turns=args.turns, seconds=args.seconds,
        )  # fmt: skip
        _try(args, "tracking", found, name, measure, say_turns)
    return found


def paced(args: argparse.Namespace) -> Table:
    """Many 25 fps streams."""
    found: Table = {}
    for workers in args.workers:
        for streams in args.paced:
            result = _daemon(args, args.clips[0], streams, live=True, workers=workers)
            _keep(args, "paced", found, _name(args.clips[0], streams, workers, " at 25 fps"), result, figures)
    return found


def copyback(args: argparse.Namespace) -> Table:
    """Measures the benefit of frames that stay on the GPU."""
    found: Table = {}
    clip, streams = args.clips[0], 16
    # Whatever Python starts with this path finds tools/copyback/sitecustomize.py.
    path = os.pathsep.join([str(ROOT / "tools" / "copyback"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    for workers in args.workers:
        for what, more in (
            (", on the GPU", {}),
            (", copied back", {"environment": {"PYTHONPATH": path}}),
            (", software", {"decode": "software"}),
        ):
            result = _daemon(args, clip, streams, live=False, workers=workers, **more)
            _keep(args, "copyback", found, _name(clip, streams, workers, what), result, figures)
    return found


def memory(args: argparse.Namespace) -> Table:
    """The heaviest case, for a long time."""
    found: Table = {}
    workers, streams = max(args.workers), max(args.counts)
    result = _daemon(args, args.clips[0], streams, live=False, workers=workers, seconds=args.minutes * 60)
    _keep(args, "memory", found, _name(args.clips[0], streams, workers), result, figures)
    for key in ("rss_mb_by_minute", "device_mib_by_minute"):
        print(f"  {key}: {result.get(key)}")
    p99 = [v["p99"] for v in result.get("latency_ms_by_minute", [])]
    print(f"  p99 ms by minute: {p99}")
    return found


def live(args: argparse.Namespace) -> Table:
    """One stream."""
    found: Table = {}
    for clip in args.clips:
        _keep(args, "live", found, _name(clip, 1, 1, " at 25 fps"), _daemon(args, clip, 1, live=True), figures)
    return found


STEPS = {
    "build": build, "tests": tests, "torch": torch, "engine": engine, "layers": layers, "map": map_, "loss": loss,
    "nvdec": nvdec, "flow": flow, "tracking": tracking, "paced": paced, "live": live, "copyback": copyback,
    "memory": memory,
}  # fmt: skip


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text}: NAME=VALUE is expected")
    return name, value


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the steps in the order given."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("steps", nargs="+", choices=[*STEPS, "all"])
    p.add_argument("--plans", type=Path, nargs="+", default=[], help="the first is the one the daemon runs")
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--clips", type=Path, nargs="+", default=[])
    p.add_argument("--images", default="")
    p.add_argument("--labels", default="")
    p.add_argument("--float", type=_pair, nargs="+", default=[], metavar="PLAN=MODEL[:HEAD]", help="of the step loss")
    p.add_argument(
        "--set", type=_pair, nargs="+", default=[], dest="sets", metavar="NAME=FOLDER", help="images, labels"
    )
    p.add_argument("--turns", type=int, default=3, help="of the step tracking")
    p.add_argument("--pairs", type=int, default=3, help="of daemons in the step tracking, where each is one process")
    p.add_argument("--seconds", type=float, default=6.0)
    p.add_argument("--counts", type=int, nargs="+", default=[1, 4, 16, 32, 64])
    p.add_argument("--paced", type=int, nargs="+", default=[16, 64, 100, 128])
    p.add_argument("--workers", type=int, nargs="+", default=[1], help="process counts for the daemon's steps")
    p.add_argument("--batches", type=int, nargs="+", default=[1, 32], help="of the steps layers and torch")
    p.add_argument("--build", type=Wanted.of, nargs="+", default=[], metavar="NAME=MODEL:PRECISION:MIN,BEST,MAX")
    p.add_argument(
        "--effort", type=effort_of, nargs="+", default=[None], metavar="N|own",
        help="efforts at which each plan of --build is built: 0 to 5, as NAME-effortN; own: TensorRT's own, as NAME",
    )  # fmt: skip
    p.add_argument("--jobs", type=int, default=1, help="builds at a time")
    p.add_argument("--build-limit", type=float, default=600, metavar="S", help="seconds that one build may take")
    p.add_argument(
        "--keep-clock-rates", action="store_true",
        help="builds with TensorRT 8.5 ask the driver for the GPU's clock rates only once; needs cc",
    )  # fmt: skip
    p.add_argument("--torch", nargs=2, metavar=("PYTHON", "MODEL"), help="another Python, and the float ONNX model")
    p.add_argument("--max-fps", type=float, help="of every stream in the daemon's steps")
    p.add_argument("--viewer", type=float, default=0, metavar="FPS", help="simulate a viewer of the page meanwhile")
    p.add_argument("--age-ms", type=float, default=0.0, help="batch.age_ms of the daemon: how long a batch may fill")
    p.add_argument("--config", type=json.loads, default={}, metavar="JSON", help="more sections of the configuration")
    p.add_argument("--stream", type=json.loads, default={}, metavar="JSON", help="more settings of every stream")
    p.add_argument("--conf", type=float, default=0.25, help="detect.conf of the step engine; near 1 for random weights")
    p.add_argument("--devices", type=int, nargs="+", default=[0], help="GPUs of the daemon's steps, by ordinal")
    p.add_argument("--mps", action="store_true", help="engine.mps in the daemon's steps with several workers")
    p.add_argument("--minutes", type=float, default=10.0, help="of the step memory (default 10)")
    p.add_argument("--engine", default="tensorrt", help="of the daemon; another, and --decode software, to rehearse")
    p.add_argument("--decode", default="nvdec")
    p.add_argument("--py-spy", default="", metavar="PATH", help="py-spy, for the GIL's share in the busiest process")
    p.add_argument("--pytest", nargs="*", default=[])
    p.add_argument("--tail", type=int, default=3000, help="characters of the test log to print")
    args = p.parse_args(arguments)
    from streamd.telemetry.logs import configure

    configure("warning")
    args.out.mkdir(parents=True, exist_ok=True)
    code = _run(args)
    print_table(args.out)
    return code


def _run(args: argparse.Namespace) -> int:
    code = 0
    for step in STEPS if "all" in args.steps else args.steps:
        print(f"== {step}", flush=True)
        begin = time.monotonic()
        try:
            found = STEPS[step](args)
        except Exception as error:  # noqa: BLE001 - the steps after it still have something to tell
            import traceback

            traceback.print_exc()
            found, code = {"error": str(error)}, 1
        code = code or int(found.get("exit", 0) != 0)
        _write(args, step, found)
        print(f"   {step}: {time.monotonic() - begin:.0f} s", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
