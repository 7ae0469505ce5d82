#!/usr/bin/env python3
"""Measures what recording clips costs: CPU time per stream, and latency.

    python tools/bench_recording.py [--video clip.mp4] [--streams 4] [--runs 10] [--seconds 30] [--json FILE]

Each run is a pair: the daemon with a rule that records its events one after the other, and the same daemon and rule
without `clip`. Which of the two comes first alternates, so that a slow phase of the machine affects both alike. Shown
are the mean of the differences and its 95 % confidence interval (Student's t). The engine is the scripted one unless a
model is given: it takes no time, so that nothing hides what recording takes.

Without --video, a clip of 1920x1080 at 25 frames/s and about 4 Mbit/s is made. The exit code is 1 if the interval is
not below the limit (--max-core, in percent of a core per stream; --max-ms, of the 99th percentile of the latency).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bench import Result, streamd

T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093,
)  # fmt: skip
"""97.5 % quantiles of Student's t for 1, 2, … degrees of freedom."""
ZONE = {"name": "all", "points": [[0, 0], [1, 0], [1, 1], [0, 1]], "anchor": "center"}
CLIP = {"pre_s": 5, "post_s": 1, "max_s": 60}
"""The events of a loop follow one another, so that a clip is always under way."""


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of the values and its 95 % confidence interval; infinite for a single value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, -math.inf, math.inf
    quantile = T_975[min(len(values) - 2, len(T_975) - 1)]
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def make_video(path: Path, seconds: int = 20) -> Path:
    """A noisy picture that moves: 1920x1080, H.264, 25 frames/s, about 4 Mbit/s, a key frame every two seconds."""
    import av

    random = np.random.default_rng(0)
    coarse = random.integers(0, 255, (270, 640, 3), np.uint8)
    wide = coarse.repeat(4, axis=0).repeat(4, axis=1)
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("libx264", rate=25, options={"preset": "ultrafast", "tune": "zerolatency"})
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 1920, 1080, "yuv420p", 50
        stream.bit_rate = 4_000_000
        for i in range(seconds * 25):
            image = np.ascontiguousarray(wide[:, i : i + 1920])
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode(None))
    return path


def one(args: argparse.Namespace, folder: Path, *, recording: bool) -> Result:
    """One run of the daemon."""
    state = folder / f"state{len(list(folder.iterdir()))}"
    args.stream = {"zones": [ZONE | ({"clip": CLIP} if recording else {})]}
    args.config = {"events": {"state_dir": str(state)}, "media": {"min_free_gb": 0, "keep_gb": 1}}
    result = streamd(args, args.seconds)
    clips = list(state.rglob("*.mp4"))
    return {
        # fps and CPU time per frame have the same number of frames in them.
        "core_percent": result["fps"] * result["cpu_ms_per_frame"] / 10 / args.streams,
        "p99_ms": result["latency_ms"]["p99"],
        "fps": result["fps"],
        "dropped": result["dropped"],
        "threads_ms_per_frame": result["threads_ms_per_frame"],
        "clips": len(clips),
        "clip_mb": sum(path.stat().st_size for path in clips) / 1e6,
    }


def main() -> int:
    """Runs the pairs and prints the differences."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--video")
    p.add_argument("--model", default="none")
    p.add_argument("--engine", choices=("null", "openvino", "tensorrt"), default="null")
    p.add_argument("--decode", choices=("auto", "software", "nvdec"), default="auto")
    p.add_argument("--isolation", choices=("thread", "process"), default="thread")
    p.add_argument("--streams", type=int, default=1)
    p.add_argument("--workers", type=int, default=1)
    p.add_argument("--runs", type=int, default=10, help="pairs (default 10)")
    p.add_argument("--seconds", type=float, default=30.0, help="of measurement in each run (default 30)")
    p.add_argument("--max-core", type=float, default=2.0, metavar="PERCENT")
    p.add_argument("--max-ms", type=float, default=1.0)
    p.add_argument("--json", metavar="FILE")
    args = p.parse_args()
    args.live, args.batch, args.age_ms, args.devices, args.mps = True, None, 0.0, [0], False
    args.hint = args.requests = None
    pairs: list[tuple[Result, Result]] = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "runs"
        folder.mkdir()
        args.video = args.video or str(make_video(Path(made) / "video.mp4"))
        for number in range(args.runs):
            order = (True, False) if number % 2 else (False, True)
            found = {recording: one(args, folder, recording=recording) for recording in order}
            pairs.append((found[True], found[False]))
            on, off = pairs[-1]
            print(
                f"run {number + 1}: with {on['core_percent']:.2f} % of a core, p99 {on['p99_ms']} ms, {on['clips']} "
                f"clips, {on['clip_mb']:.1f} MB; without {off['core_percent']:.2f} %, p99 {off['p99_ms']} ms; dropped "
                f"{on['dropped']}, {off['dropped']}",
                flush=True,
            )
    good = all(on["clips"] for on, _ in pairs)
    limits = {"core_percent": ("% of a core per stream", args.max_core), "p99_ms": ("ms of p99", args.max_ms)}
    for key, (words, limit) in limits.items():
        mean, low, high = interval([on[key] - off[key] for on, off in pairs])
        print(f"recording costs {mean:+.3f} {words}, 95 % interval {low:+.3f} to {high:+.3f}, limit {limit:g}")
        good &= high < limit
    if args.json:
        Path(args.json).write_text(json.dumps(pairs, indent=2) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
