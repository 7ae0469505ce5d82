#!/usr/bin/env python3
"""What short tracks leave behind: the memory of the process over millions of them, with zones and lines.

    python tools/track_memory.py [--tracks 2000000] [--streams 4] [--no-rules] [--no-trim] [--trace] [--json]

Objects appear, walk across lines and zones for a few frames and are gone for good. The tracker, the rules and the
choice of boxes run as in the daemon; events are taken and dropped. RSS is read at every hundredth of the run; the
slope is that of a line through the last three quarters, in MiB per million tracks. `--trace` (slow) names the lines of
code whose memory grew. The C library's free memory is given back before each reading, as the daemon does every ten
seconds."""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
import tracemalloc
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
from prometheus_client import CollectorRegistry

from streamd.analysis.rules.settings import LineSettings, ZoneSettings
from streamd.analysis.tracking.bytetrack import ByteTrackSettings
from streamd.flow.settings import StreamSettings
from streamd.flow.stream import Result, StreamOutput
from streamd.heads import DetectSettings
from streamd.runtime import heap
from streamd.runtime.analytics import Analytics
from streamd.telemetry.analytics import AnalyticsMetrics
from streamd.telemetry.metrics import Metrics
from streamd.types import Boxes, Frame, ModelInfo, Picture

WIDTH, HEIGHT = 3840, 2160
PERIOD_NS = 800_000_000
"""Between frames: few enough of them that millions of tracks take minutes."""
STEPS = 6
"""Frames of an object's life."""
ZONES = (
    ZoneSettings(name="left", points=((0.1, 0.1), (0.45, 0.1), (0.45, 0.9), (0.1, 0.9)), min_s=0.3, loiter_s=0.5),
    ZoneSettings(name="right", points=((0.55, 0.1), (0.9, 0.1), (0.9, 0.9), (0.55, 0.9)), cooldown_s=5),
)
LINES = (
    LineSettings(name="across", points=((0.0, 0.5), (1.0, 0.5))),
    LineSettings(name="down", points=((0.5, 0.0), (0.5, 1.0)), cooldown_s=5),
)


class Scene:
    """One stream on which objects appear in the cells of a grid, walk a few steps, and are gone.

    Args:
        name: of the stream.
        seed: of what is drawn.
    """

    def __init__(self, name: str, seed: int) -> None:
        self.name, self.begun = name, 0
        self._rng = np.random.default_rng(seed)
        self._age = np.zeros(0)
        self._place = self._step = np.zeros((0, 2))
        self._class = np.zeros(0, np.int32)
        self._seq = 0

    def result(self, output: StreamOutput) -> Result:
        """The next frame, with its boxes."""
        rng = self._rng
        alive = self._age < STEPS
        born = int(rng.integers(0, 13))
        self.begun += born
        self._age = np.concatenate((self._age[alive] + 1, np.zeros(born)))
        self._place = np.concatenate(
            ((self._place + self._step)[alive], rng.uniform((200, 200), (WIDTH - 200, HEIGHT - 200), (born, 2)))
        )
        self._step = np.concatenate((self._step[alive], rng.uniform(-25, 25, (born, 2))))
        self._class = np.concatenate((self._class[alive], rng.integers(0, 6, born).astype(np.int32)))
        low = self._place - 30
        at = (1 + self._seq) * PERIOD_NS
        picture = Picture(None, "nv12", WIDTH, HEIGHT)  # type: ignore[arg-type]
        frame = Frame(self.name, picture, WIDTH, HEIGHT, at, at, at, at, seq=self._seq)
        self._seq += 1
        corners = np.hstack((low, low + 60)).astype(np.float32)
        return Result(output, frame, Boxes(corners, np.full(len(low), 0.8, np.float32), self._class))


def run(tracks: int, streams: int, rules: bool) -> Iterator[tuple[int, int]]:
    """After every hundredth of the run how many tracks there were, and how many events."""
    registry, events = CollectorRegistry(), count()
    metrics, model = Metrics(registry), ModelInfo("memory", "0" * 64, tuple("abcdef"))
    analytics = Analytics(
        ByteTrackSettings(lost_s=0.05), DetectSettings(), AnalyticsMetrics(registry), lambda *_: next(events),
        boot_id="memory",
    )  # fmt: skip
    step, scenes = analytics.step(model), [Scene(f"s{i}", i) for i in range(streams)]
    outputs = [StreamOutput(scene.name, metrics, model, lambda _: None) for scene in scenes]
    for scene in scenes:
        rule = {"zones": ZONES, "lines": LINES} if rules else {}
        analytics.add(StreamSettings(id=scene.name, kind="memory", **rule))
    told = 0
    while told < 100:
        step.step([scene.result(output) for scene, output in zip(scenes, outputs, strict=True)])
        if (begun := sum(scene.begun for scene in scenes)) >= (told + 1) * tracks / 100:
            told += 1
            yield begun, next(events)


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def main() -> int:
    """Runs and prints."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--tracks", type=int, default=2_000_000)
    p.add_argument("--streams", type=int, default=4)
    p.add_argument("--no-rules", action="store_true", help="the tracker alone")
    p.add_argument("--no-trim", action="store_true", help="leave the C library its free memory")
    p.add_argument("--trace", action="store_true", help="name what grows")
    p.add_argument("--json", action="store_true")
    args = p.parse_args()
    begin, first, events = time.monotonic(), None, 0
    readings: list[tuple[int, int]] = []
    for begun, told in run(args.tracks, args.streams, not args.no_rules):
        events = told
        if args.trace and len(readings) == 24:
            gc.collect()
            tracemalloc.start(8)
        if args.trace and len(readings) == 30:
            gc.collect()
            first = tracemalloc.take_snapshot()
        if not args.no_trim:
            heap.trim()
        readings.append((begun, resident()))
        if not args.json and len(readings) % 10 == 0:
            print(
                f"{begun:>10} tracks {readings[-1][1] / 2**20:9.3f} MiB {time.monotonic() - begin:7.0f} s", flush=True
            )
    if first is not None:
        gc.collect()
        for line in tracemalloc.take_snapshot().compare_to(first, "lineno")[:15]:
            print(line)
    late = np.array(readings[len(readings) // 4 :], np.float64)
    slope = float(np.polyfit(late[:, 0] / 1e6, late[:, 1] / 2**20, 1)[0])
    found = {"tracks": readings[-1][0], "events": events, "slope_mib": round(slope, 3)}
    print(json.dumps(found) if args.json else f"{found['tracks']} tracks, {events} events: {slope:.2f} MiB a million")
    return 0


if __name__ == "__main__":
    sys.exit(main())
