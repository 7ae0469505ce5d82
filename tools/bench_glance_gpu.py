#!/usr/bin/env python3
"""Measures what a glance at frames in GPU memory costs, and what it saves. Needs an NVIDIA GPU.

    python tools/bench_glance_gpu.py kernel
    python tools/bench_glance_gpu.py round
    python tools/bench_glance_gpu.py clip --video VIDEO --out DAY.mp4
    python tools/bench_glance_gpu.py flow --plan PLAN --video DAY.mp4 --look motion [--streams 64] [--pace asap]

kernel  GPU time a frame of 1, 16 and 64 frames of 1080p in one launch, by CUDA events, of NV12 and P010: launches one
        after the other, and single ones; cells are written to the host, as in the daemon, or to device memory
round   time from asking to having the cells, and CPU time a frame, of 1, 16 and 64 threads that ask all the time
clip    writes a clip that is still most of the time: two seconds of VIDEO, then eight of its last picture with noise
flow    the daemon with NVDEC: frames a second, CPU time a frame, looks a frame, and how busy the network is
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from bench_daemon import free_port
from bench_watch import Tree
from gpu_machine import Gpu
from prometheus_client.parser import text_string_to_metric_families

from streamd.analysis.glance import COLUMNS, ROWS
from streamd.analysis.glance.picture import LAYOUTS
from streamd.engine.tensorrt import glance
from streamd.engine.tensorrt import kernels as ker
from streamd.engine.tensorrt.cuda import Device
from streamd.engine.tensorrt.enqueue import Kernel
from streamd.engine.tensorrt.glance import MOST, SurfaceGlances
from streamd.types import Picture

WIDTH, HEIGHT = 1920, 1080
PITCHES = {"nv12": 2048, "p010le": 4096}
PLAYS_S, STANDS_S = 2, 8
WARM_UP_S = 14.0
"""Longer than a stream learns."""
OPEN_LIMIT_S = 120.0


def _kernel(device: Device) -> Kernel:
    return device.kernels(ker.ptx(), {glance.KERNEL: glance.ARGUMENTS})[glance.KERNEL]


def _pictures(device: Device, name: str, count: int) -> list[Picture]:
    """Surfaces of 1080p in memory of their own, so that they are not all in the GPU's cache."""
    pitch = PITCHES[name]
    made = []
    for _ in range(count):
        plane = SimpleNamespace(buffer_ptr=device.allocate(pitch * HEIGHT).address, line_size=pitch)
        native: Any = SimpleNamespace(planes=[plane])
        made.append(Picture(native, name, WIDTH, HEIGHT, device=device.ordinal))
    return made


def kernel(_: argparse.Namespace) -> None:
    """See the module."""
    device = Device(0)
    function, stream = _kernel(device), device.stream()
    begin, end = device.event(), device.event()
    size = MOST * glance.CELLS
    out = {"host": device.allocate_pinned(size).address, "device": device.allocate(size).address}
    print(f"{device.name}: microseconds of the GPU a frame, {WIDTH} x {HEIGHT}")
    print(f"{'':<8}{'frames':>8}{'cells to':>10}{'in a row':>10}{'alone, median':>15}{'p99':>8}")
    for name, pitch in PITCHES.items():
        layout = LAYOUTS[name]
        surfaces = [
            np.array([p.native.planes[0].buffer_ptr], np.uint64).tobytes()
            + np.array([pitch, WIDTH, HEIGHT, layout.size, layout.shift, 0], np.int32).tobytes()
            for p in _pictures(device, name, MOST)
        ]
        for count, (where, cells) in itertools.product((1, 16, MOST), out.items()):
            tables = [
                b"".join(surfaces[(at + i) % MOST] for i in range(count)).ljust(MOST * glance.SURFACE_BYTES, b"\0")
                for at in range(0, MOST, count)
            ]

            def launch(table: bytes, grid: tuple[int, int, int] = (ROWS, count, 1), address: int = cells) -> None:
                function.launch(stream, grid, (COLUMNS, 1, 1), address, table)

            rounds = max(10, 2000 // count)
            alone = []
            with device:
                for table in itertools.islice(itertools.cycle(tables), 20):
                    launch(table)
                stream.synchronize()
                begin.record(stream)
                for table in itertools.islice(itertools.cycle(tables), rounds):
                    launch(table)
                end.record(stream)
                end.synchronize()
                row = end.seconds_since(begin) / rounds
                for table in itertools.islice(itertools.cycle(tables), 200):
                    begin.record(stream)
                    launch(table)
                    end.record(stream)
                    end.synchronize()
                    alone.append(end.seconds_since(begin))
            each = np.array(alone) * 1e6 / count
            print(
                f"{name:<8}{count:>8}{where:>10}{row * 1e6 / count:>10.2f}{np.median(each):>15.2f}"
                f"{np.percentile(each, 99):>8.2f}",
                flush=True,
            )
    device.close()


def rounds(args: argparse.Namespace) -> None:
    """See the module."""
    device = Device(0)
    reader = SurfaceGlances(device, _kernel(device))
    pictures = _pictures(device, "nv12", MOST)
    print(f"{device.name}: asking for small pictures of {WIDTH} x {HEIGHT}, nothing else at work")
    print(f"{'threads':>8}{'frames/s':>10}{'a launch':>10}{'median us':>11}{'p99 us':>9}{'CPU us/f':>10}")
    for count in (1, 16, MOST):
        times: list[list[float]] = [[] for _ in range(count)]
        stop = threading.Event()

        def ask(index: int, times: list[list[float]] = times, stop: threading.Event = stop) -> None:
            own, picture, layout = times[index], pictures[index], LAYOUTS["nv12"]
            while not stop.is_set():
                began = time.perf_counter()
                reader.read(picture, layout)
                own.append(time.perf_counter() - began)
                if args.sleep_ms:
                    time.sleep(args.sleep_ms / 1e3)

        launches, frames = reader.counts
        threads = [threading.Thread(target=ask, args=(i,)) for i in range(count)]
        cpu, began = time.process_time(), time.monotonic()
        for thread in threads:
            thread.start()
        time.sleep(args.seconds / 10)
        stop.set()
        for thread in threads:
            thread.join()
        elapsed, spent = time.monotonic() - began, time.process_time() - cpu
        launches, frames = reader.counts[0] - launches, reader.counts[1] - frames
        found = np.concatenate(times) * 1e6
        print(
            f"{count:>8}{frames / elapsed:>10.0f}{frames / launches:>10.1f}{np.median(found):>11.0f}"
            f"{np.percentile(found, 99):>9.0f}{spent / frames * 1e6:>10.1f}",
            flush=True,
        )
    reader.close()
    device.close()


def clip(args: argparse.Namespace) -> None:
    """See the module."""
    import av

    rng = np.random.default_rng(0)
    with av.open(args.video) as container:
        video = container.streams.video[0]
        fps = round(float(video.average_rate or 25))
        played = [
            frame.reformat(WIDTH, HEIGHT, "yuv420p").to_ndarray()
            for frame in itertools.islice(container.decode(video), PLAYS_S * fps)
        ]
    last = played[-1].astype(np.int16)
    noise = [rng.normal(0, 1.2, last.shape).round().astype(np.int16) for _ in range(6)]
    with av.open(args.out, "w") as out:
        stream: Any = out.add_stream(
            "libx264", rate=fps, options={"preset": "veryfast", "crf": "23", "tune": "zerolatency"}
        )
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = WIDTH, HEIGHT, "yuv420p", 2 * fps
        for i in range((PLAYS_S + STANDS_S) * fps):
            planes = played[i] if i < len(played) else np.clip(last + noise[i % len(noise)], 0, 255).astype(np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
        out.mux(stream.encode())
    print(f"{args.out}: {(PLAYS_S + STANDS_S) * fps} frames, {fps} a second, {PLAYS_S} s of {PLAYS_S + STANDS_S} move")


def _read(port: int) -> dict[str, float]:
    """Sums over all streams; of what has reasons or stages, by those, too."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    out: dict[str, float] = defaultdict(float)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.endswith(("_total", "_sum", "_count")):
                out[sample.name] += sample.value
                for label in ("reason", "why", "stage", "decoder"):
                    if label in sample.labels:
                        out[f"{sample.name} {sample.labels[label]}"] += sample.value
            elif sample.name == "streamd_decoder_sessions":
                out[f"decoders {sample.labels['decoder']}"] += sample.value
    return out


def flow(args: argparse.Namespace) -> None:
    """See the module."""
    port, sink_port = free_port(), free_port()
    look = {"when": "motion"} if args.look == "motion" else {}
    stream = {
        "url": str(Path(args.video).resolve()),
        "loop": True,
        "pace": args.pace,
        "decode": args.decode,
        "look": look,
    }
    health = {"camera_health": {"enabled": True}} if args.health else {}
    config = {
        "model": {"path": args.plan if args.plan == "none" else str(Path(args.plan).resolve())},
        "engine": {"kind": args.engine},
        "streams": [stream | health | {"id": f"s{i}"} for i in range(args.streams)],
        "sinks": [{"kind": "zmq", "bind": f"tcp://127.0.0.1:{sink_port}"}],
        "workers": args.workers,
        "metrics": {"listen": f"127.0.0.1:{port}", "page": False},
        "logging": {"level": "warning"},
    } | ({"tracking": {}} if args.tracking else {})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "flow.yaml"
        path.write_text(json.dumps(config | {"events": {"state_dir": folder}} if args.health else config))
        process = subprocess.Popen([sys.executable, "-m", "streamd", "run", str(path)], cwd=folder)
        try:
            _measure(args, port, Tree(process.pid))
        finally:
            process.terminate()
            process.wait(60)


def _measure(args: argparse.Namespace, port: int, tree: Tree) -> None:
    deadline = time.monotonic() + OPEN_LIMIT_S
    while True:
        time.sleep(0.5)
        if tree.over or time.monotonic() > deadline:
            raise SystemExit("bench_glance_gpu: the streams did not open")
        try:
            opened = _read(port)
        except OSError:
            continue
        if sum(v for k, v in opened.items() if k.startswith("decoders ")) >= args.streams:
            break
    time.sleep(args.warm_up)
    with Gpu([0]) as gpu:
        before, cpu, began = _read(port), tree.cpu(), time.monotonic()
        time.sleep(args.seconds)
        after, spent, elapsed = _read(port), tree.cpu() - cpu, time.monotonic() - began
    d = defaultdict(float, {k: v - before[k] for k, v in after.items()})
    received = d["streamd_frames_received_total"]
    looked = received if args.look == "always" else d["streamd_frames_looked_total"]
    batches = d["streamd_batch_size_count"]
    why = {
        k.split()[1]: round(v / received, 3)
        for k, v in sorted(d.items(), key=lambda item: -item[1])
        if k.startswith(("streamd_frames_looked_total ", "streamd_frames_glanced_total ")) and v
    }
    decoders = {k.split()[1]: int(v) for k, v in opened.items() if k.startswith("decoders ") and v}
    latency = d["streamd_capture_to_publish_seconds_sum"] / max(d["streamd_capture_to_publish_seconds_count"], 1)
    network = d["streamd_device_duration_seconds_sum infer"] / elapsed
    print(
        f"{args.streams} streams {args.pace}, look {args.look}, {args.workers} workers, decoders {decoders}\n"
        f"  {received / elapsed:.1f} frames/s, {d['streamd_frames_published_total'] / elapsed:.1f} published, "
        f"dropped {d['streamd_frames_dropped_total']:.0f}, CPU {spent / max(received, 1) * 1e3:.3f} ms a frame, "
        f"published {latency * 1e3:.1f} ms after capture, on average\n"
        f"  looked at {looked / max(received, 1):.3f} of the frames; {why}\n"
        f"  the network worked {network:.3f} s a second in {batches / elapsed:.1f} batches of "
        f"{d['streamd_batch_size_sum'] / max(batches, 1):.2f}; preprocess "
        f"{d['streamd_device_duration_seconds_sum preprocess'] / elapsed:.3f} s a second\n"
        f"  GPU %, decoder %, MiB: {gpu.means}",
        flush=True,
    )


def main() -> int:
    """See the module."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("step", choices=("kernel", "round", "clip", "flow"))
    p.add_argument("--plan", default="none", help="the TensorRT plan of the step flow")
    p.add_argument("--video", help="of the steps clip and flow")
    p.add_argument("--out", default="day.mp4", help="of the step clip")
    p.add_argument("--look", choices=("always", "motion"), default="motion")
    p.add_argument("--streams", type=int, default=64)
    p.add_argument("--pace", choices=("realtime", "asap"), default="realtime")
    p.add_argument("--workers", type=int, default=4)
    p.add_argument("--health", action="store_true", help="with camera_health")
    p.add_argument("--tracking", action="store_true")
    p.add_argument("--seconds", type=float, default=20.0, help="of measurement; of each row of the step round, a tenth")
    p.add_argument("--warm-up", type=float, default=WARM_UP_S)
    p.add_argument("--sleep-ms", type=float, default=0.0, help="between two frames of a thread of the step round")
    p.add_argument("--engine", default="tensorrt", help="another, and --decode software, to rehearse")
    p.add_argument("--decode", default="nvdec")
    args = p.parse_args()
    {"kernel": kernel, "round": rounds, "clip": clip, "flow": flow}[args.step](args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
