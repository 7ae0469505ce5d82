#!/usr/bin/env python3
"""Measures the speed of streamd, the bare engine, and a simple hand-written loop in one run.

    python tools/bench.py --model yolov5n_heads.onnx --video clip.mp4 [--streams 4] [--workers 2] [--live] [--json FILE]

Rows:
  bare the engine alone in its throughput mode, with inputs prepared: an upper bound for any program
  naive    cv2.VideoCapture, cv2 letterbox, synchronous inference, NMS, one thread, no output
  streamd  `streamd run` in processes of its own, every message received by a subscriber in this one; CPU time and
           resident memory are those of all its processes (worker processes, decoder processes) together

Rounds are interleaved and the median is shown, so that a slow phase of the machine affects all rows alike.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from bench_daemon import started
from bench_watch import GilWatch, PageViewer, Sums, Tree, Window, means, sums

from streamd.sinks.message import DetectionsMessage, decode

WARM_UP_S = 3.0
Result = dict[str, Any]


def percentiles(values: list[float]) -> Result:
    """p50, p99 and maximum, rounded."""
    if not values:
        return {"p50": None, "p99": None, "max": None}
    p50, p99 = np.percentile(values, [50, 99])
    return {"p50": round(float(p50), 2), "p99": round(float(p99), 2), "max": round(max(values), 2)}


def bare(model: str, seconds: float, *, hint: str = "THROUGHPUT") -> Result:
    """The engine alone: as many requests as it recommends, each restarted as soon as it has finished."""
    import openvino as ov

    core = ov.Core()
    network = core.read_model(model)
    port = network.inputs[0]
    shape = [
        1 if d.is_dynamic and i == 0 else 640 if d.is_dynamic else d.get_length()
        for i, d in enumerate(port.partial_shape)
    ]
    network.reshape({port.get_any_name(): shape})
    compiled = core.compile_model(network, "CPU", {"PERFORMANCE_HINT": hint})
    count = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
    requests = [compiled.create_infer_request() for _ in range(count)]
    random = np.random.default_rng(0)
    for request in requests:
        request.get_input_tensor().data[:] = random.random(shape, np.float32)
        request.start_async()
    done, latencies, started_at = 0, [], [time.monotonic()] * count
    begin = time.monotonic()
    measuring = False
    while True:
        for i, request in enumerate(requests):
            request.wait()
            now = time.monotonic()
            if not measuring and now - begin >= WARM_UP_S / 2:
                measuring, done, begin = True, 0, now
            done += 1
            latencies.append((now - started_at[i]) * 1e3)
            started_at[i] = now
            request.start_async()
        if measuring and time.monotonic() - begin >= seconds:
            break
    elapsed = time.monotonic() - begin
    for request in requests:
        request.wait()
    return {"fps": done / elapsed, "infer_ms": percentiles(latencies[len(latencies) // 4 :])}


def naive(model: str, video: str, seconds: float) -> Result:
    """The loop that a tutorial would show."""
    import cv2
    import openvino as ov

    core = ov.Core()
    network = core.read_model(model)
    port = network.inputs[0]
    size = port.partial_shape[2].get_length() if port.partial_shape[2].is_static else 640
    network.reshape({port.get_any_name(): [1, 3, size, size]})
    compiled = core.compile_model(network, "CPU", {"PERFORMANCE_HINT": "LATENCY"})
    anchors = [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119], [116, 90, 156, 198, 373, 326]]
    capture = cv2.VideoCapture(video)
    frames, begin, measuring = 0, time.monotonic(), False
    while True:
        good, image = capture.read()
        if not good:
            capture = cv2.VideoCapture(video)
            continue
        height, width = image.shape[:2]
        ratio = min(size / height, size / width)
        resized = cv2.resize(image, (round(width * ratio), round(height * ratio)))
        canvas = np.full((size, size, 3), 114, np.uint8)
        top, left = (size - resized.shape[0]) // 2, (size - resized.shape[1]) // 2
        canvas[top : top + resized.shape[0], left : left + resized.shape[1]] = resized
        blob = cv2.dnn.blobFromImage(canvas, 1 / 255, swapRB=True)
        outputs = [np.asarray(v) for v in compiled(blob).values()]
        boxes: list[Any] = []
        scores: list[Any] = []
        for output in outputs:
            if output.ndim == 5:
                grid_height, grid_width = output.shape[2:4]
                stride = size // grid_height
                y = 1 / (1 + np.exp(-output[0]))
                gy, gx = np.mgrid[0:grid_height, 0:grid_width]
                anchor = np.array(anchors[{8: 0, 16: 1, 32: 2}[stride]], np.float32).reshape(3, 1, 1, 2)
                y[..., 0] = (y[..., 0] * 2 - 0.5 + gx) * stride
                y[..., 1] = (y[..., 1] * 2 - 0.5 + gy) * stride
                y[..., 2:4] = (y[..., 2:4] * 2) ** 2 * anchor
                rows = y.reshape(-1, y.shape[-1])
            else:
                rows = output[0]
            best = (rows[:, 5:] * rows[:, 4:5]).max(axis=1)
            keep = best > 0.25
            boxes += (rows[keep, :4] - np.concatenate([rows[keep, 2:4] / 2, 0 * rows[keep, 2:4]], 1)).tolist()
            scores += best[keep].tolist()
        cv2.dnn.NMSBoxes(boxes, scores, 0.25, 0.45)
        now = time.monotonic()
        frames += 1
        if not measuring and now - begin >= WARM_UP_S / 2:
            measuring, frames, begin = True, 0, now
        if measuring and now - begin >= seconds:
            return {"fps": frames / (now - begin)}


def decode_ms(video: str) -> Result:
    """Milliseconds to decode one frame with one thread, as the daemon does."""
    import av

    times: list[float] = []
    with av.open(video) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for packet in container.demux(stream):
            begin = time.monotonic()
            if packet.decode():
                times.append((time.monotonic() - begin) * 1e3)
            if len(times) >= 250:
                break
    return percentiles(times)


def streamd(args: argparse.Namespace, seconds: float) -> Result:
    """The daemon as a separate process, with a subscriber in this one."""
    with started(args) as daemon:
        return _measure(args, daemon.subscriber, Tree(daemon.pid), seconds, daemon.metrics_port)


def _measure(args: argparse.Namespace, subscriber: Any, tree: Tree, seconds: float, metrics_port: int) -> Result:
    next_seq: dict[str, int] = {}
    gaps = 0
    cpu = rss_first = 0.0
    threads: dict[str, float] = {}
    rss_by_minute: list[float] = []
    gil: GilWatch | None = None
    viewer: PageViewer | None = None
    seen = (0, 0)
    batches: Sums = {}
    window: Window | None = None
    deadline = time.monotonic() + 120
    first: float | None = None
    while True:
        if not subscriber.poll(2000):
            if tree.over or time.monotonic() > deadline:
                raise SystemExit("bench: the daemon sent nothing")
            continue
        message = decode(subscriber.recv_multipart())
        if not isinstance(message, DetectionsMessage):
            continue
        gaps += max(0, message.seq - next_seq.get(message.stream, message.seq) - message.dropped)
        next_seq[message.stream] = message.seq + 1
        if window is None:
            if first is None and len(next_seq) == args.streams:
                first = time.monotonic()  # hardware decoders open one after another: measure only once all are open
                if getattr(args, "viewer", 0):
                    viewer = PageViewer(metrics_port, next_seq, args.viewer)
            if first is not None and time.monotonic() - first >= WARM_UP_S:
                # The memory of many processes takes most of a second to read: CPU time comes last, and what is
                # published meanwhile is not counted.
                rss_first, batches = tree.rss(), sums(metrics_port)
                rss_by_minute.append(round(rss_first, 1))
                gil = GilWatch(getattr(args, "py_spy", ""), tree.busiest(), seconds)
                threads, cpu = tree.threads(), tree.cpu()
                seen = (viewer.pictures, viewer.empty) if viewer is not None else seen
                window = Window(time.time(), seconds)
            continue
        if window.take(message):
            break
        if window.minutes > len(rss_by_minute):
            rss_by_minute.append(round(tree.rss(), 1))
            print(f"minute {window.minutes - 1}: {rss_by_minute[-1]} MB, {window.frames} frames so far", flush=True)
    frames = window.frames
    spent_cpu, spent_threads = tree.cpu() - cpu, tree.threads()
    memory = tree.rss()
    held = gil.held() if gil is not None else None
    per_batch = means(batches, sums(metrics_port))
    spent = {k: (v - threads.get(k, 0.0)) / frames * 1e3 for k, v in spent_threads.items()}
    fair = frames / args.streams
    counts = window.per_stream
    return {
        "fps": frames / seconds,
        "latency_ms": percentiles(window.latencies()),
        "latency_ms_by_minute": [percentiles(v) for v in window.by_minute if v],
        "rss_mb_by_minute": [*rss_by_minute, round(memory, 1)],
        "stage_ms": {name: percentiles(values) for name, values in window.stages.items()},
        "batch_mean": per_batch.pop("batch", None),
        "device_ms_per_batch": per_batch,
        "cpu_ms_per_frame": spent_cpu / frames * 1e3,
        "threads_ms_per_frame": {
            k: round(v, 3) for k, v in sorted(spent.items(), key=lambda item: -item[1])[:7] if v >= 0.001
        },
        "gil_share": held[0] if held is not None else None,
        "gil_held_by": held[1] if held is not None else {},
        "rss_mb": memory,
        "rss_growth_mb": memory - rss_first,
        "dropped": window.dropped,
        "unexplained_gaps": gaps,
        "page_pictures_s": None if viewer is None else (viewer.pictures - seen[0]) / seconds,
        "page_without_picture": None if viewer is None else viewer.empty - seen[1],
        "share_min": min(counts.values()) / fair if len(counts) == args.streams else 0.0,
        "share_max": max(counts.values()) / fair,
    }


def median_of(results: list[Result]) -> Result:
    """The round whose throughput is the median one."""
    middle = statistics.median_low([r["fps"] for r in results])
    chosen = next(r for r in results if r["fps"] == middle)
    return chosen | {"fps_rounds": [round(r["fps"], 2) for r in results]}


def main() -> int:
    """Runs the rows and prints the table."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True)
    p.add_argument("--video", required=True)
    p.add_argument("--streams", type=int, default=1)
    p.add_argument("--seconds", type=float, default=12.0, help="of measurement in each round (default 12)")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--live", action="store_true", help="pace the streams at their own rate, to measure latency")
    p.add_argument("--only", choices=("bare", "naive", "streamd"), action="append", help="only these rows")
    p.add_argument("--engine", choices=("openvino", "tensorrt", "null"), default="openvino", help="of streamd")
    p.add_argument("--decode", choices=("auto", "software", "nvdec"), default="auto")
    p.add_argument("--isolation", choices=("thread", "process"), default="thread", help="decoder of streamd")
    p.add_argument(
        "--viewer", type=float, metavar="FPS", help="simulate a viewer of the page at this many pictures per second"
    )
    p.add_argument("--max-fps", type=float, help="max_fps of each stream of streamd")
    p.add_argument("--batch", type=int, help="largest number of frames in a batch")
    p.add_argument("--age-ms", type=float, default=0.0, help="how long a batch may wait to fill")
    p.add_argument("--devices", type=int, nargs="+", default=[0], help="ordinals of the GPUs to use")
    p.add_argument("--mps", action="store_true", help="streamd's workers share the GPU through an MPS server")
    p.add_argument("--hint", choices=("latency", "throughput"))
    p.add_argument("--requests", type=int)
    p.add_argument("--workers", type=int, default=1, help="processes of the row streamd (default 1)")
    p.add_argument("--py-spy", default="", metavar="PATH", help="py-spy, for the GIL's share in the busiest process")
    p.add_argument("--json", metavar="FILE")
    args = p.parse_args()
    rows = args.only or ["bare", "naive", "streamd"]
    results: dict[str, list[Result]] = {name: [] for name in rows}
    for _ in range(args.rounds):
        for name in rows:
            if name == "bare":
                results[name].append(bare(args.model, args.seconds, hint="LATENCY" if args.live else "THROUGHPUT"))
            elif name == "naive":
                results[name].append(naive(args.model, args.video, args.seconds))
            else:
                results[name].append(streamd(args, args.seconds))
    final = {name: median_of(rounds) for name, rounds in results.items()}
    final["decode_ms"] = decode_ms(args.video)
    base = final.get("bare", {}).get("fps")
    cores = len(os.sched_getaffinity(0))
    numbers = ((args.streams, "stream"), (args.workers, "worker"), (cores, "core"))
    load = ", ".join(f"{n} {noun}{'s' * (n != 1)}" for n, noun in numbers)
    print(f"{Path(args.model).name}, {Path(args.video).name}, {load}")
    columns = [("frames/s", 10), ("of bare", 9), ("p50 ms", 9), ("p99 ms", 9), ("CPU ms/f", 10), ("RSS MB", 8)]
    columns.append(("growth", 8))
    print(f"{'row':<10}" + "".join(f"{name:>{width}}" for name, width in columns) + "  rounds")
    for name in rows:
        r = final[name]
        latency = r.get("latency_ms") or r.get("infer_ms") or {}
        cells = [
            f"{r['fps']:.2f}",
            f"{r['fps'] / base:.3f}" if base else "",
            latency.get("p50", ""),
            latency.get("p99", ""),
            f"{r['cpu_ms_per_frame']:.1f}" if "cpu_ms_per_frame" in r else "",
            f"{r['rss_mb']:.0f}" if "rss_mb" in r else "",
            f"{r['rss_growth_mb']:+.1f}" if "rss_growth_mb" in r else "",
        ]
        widths = (10, 9, 9, 9, 10, 8, 8)
        print(f"{name:<10}" + "".join(f"{c!s:>{w}}" for c, w in zip(cells, widths, strict=True)), f" {r['fps_rounds']}")
    if "streamd" in final:
        s = final["streamd"]
        if len(s["latency_ms_by_minute"]) > 1:
            print("latency p50/p99 ms by minute:", *[f"{v['p50']}/{v['p99']}" for v in s["latency_ms_by_minute"]])
            print("RSS MB by minute:", *s["rss_mb_by_minute"])
        if s["page_pictures_s"] is not None:
            print(f"page: {s['page_pictures_s']:.1f} pictures a second, {s['page_without_picture']} without one")
        if s["gil_share"] is not None:
            print(f"interpreter lock of the busiest process held {s['gil_share']:.0%} of the time, by")
            for frame, share in s["gil_held_by"].items():
                print(f"  {share:6.1%}  {frame}")
        print("CPU ms a frame by thread:", ", ".join(f"{k} {v}" for k, v in s["threads_ms_per_frame"].items()))
        print(f"frames a batch: {s['batch_mean']}")
        print("stages p50/p99 ms:", ", ".join(f"{k} {v['p50']}/{v['p99']}" for k, v in s["stage_ms"].items()))
        print(
            f"dropped {s['dropped']}, gaps that no counter explains {s['unexplained_gaps']}, "
            f"share of the fair rate {s['share_min']:.3f} to {s['share_max']:.3f}, decode {final['decode_ms']} ms"
        )
    if args.json:
        Path(args.json).write_text(json.dumps(final, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
