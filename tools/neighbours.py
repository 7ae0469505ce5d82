#!/usr/bin/env python3
"""Measures how a faulty camera affects eight healthy ones: their rate and 99th percentile with each fault, and without.

    python tools/neighbours.py [--seconds 6] [--rounds 2] [--faults mute burst:1 ...] [--json out.json]

Phases with and without a fault alternate; a fault is compared with the phases before and after it, over all rounds, so
that a slow phase of the machine affects both alike. "sound" is a ninth camera without a fault, "alone" one phase
without a ninth camera against the neighbouring ones: treat their change as the noise floor."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from fakecam import FAULTS, FakeCamera
from rtp_clip import Clip

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.behaviour.daemon import Subscriber, daemon, until
from tests.clips import write_clip

HEALTHY = tuple(f"good{i}" for i in range(8))
FPS = 25
SETTLE_S = 1.0
STREAM = (
    "  - {{id: {name}, url: '{url}', open_timeout_s: 3, read_timeout_s: 2, reconnect: {{initial_s: 0.2, max_s: 1}}}}\n"
)


@dataclass(slots=True)
class Turn:
    """Results of the healthy cameras for a while."""

    rates: list[float] = field(default_factory=list)
    """Published fraction of the frames that their camera sent: one value per stream and phase."""
    latencies: list[float] = field(default_factory=list)
    """Capture to publish, milliseconds."""

    def add(self, other: Turn) -> None:
        """Adds the results of another one."""
        self.rates += other.rates
        self.latencies += other.latencies

    @property
    def rate(self) -> float:
        """The lowest published fraction of a stream."""
        return float(np.min(np.mean(np.reshape(self.rates, (-1, len(HEALTHY))), axis=0)))

    @property
    def p99(self) -> float:
        """Milliseconds."""
        return float(np.percentile(self.latencies, 99))


def turn(subscriber: Subscriber, cameras: dict[str, FakeCamera], seconds: float) -> Turn:
    """Watches the healthy ones."""
    time.sleep(SETTLE_S)
    first = {name: (len(subscriber.frames[name]), camera.pictures) for name, camera in cameras.items()}
    time.sleep(seconds)
    found = Turn()
    for name, camera in cameras.items():
        frames, sent = first[name]
        sent, seen = camera.pictures - sent, subscriber.frames[name][frames:]
        found.rates.append(len(seen) / sent)
        found.latencies += [m.latency_ms.total for m in seen]
    return found


def measure(folder: Path, faults: list[str], seconds: float, rounds: int) -> dict[str, tuple[Turn, Turn]]:
    """Results with the fault, and in the phases around it, by fault."""
    options = {"tune": "zerolatency"}
    small = Clip(write_clip(folder / "small.mp4", frames=8 * FPS, size=(320, 192), gop=FPS, options=options))
    large = Clip(write_clip(folder / "large.mp4", frames=8 * FPS, size=(640, 384), gop=FPS, options=options))
    x265 = options | {"x265-params": "log-level=none"}
    hevc = Clip(
        write_clip(folder / "hevc.mp4", frames=8 * FPS, size=(320, 192), gop=FPS, codec="libx265", options=x265)
    )
    found: dict[str, tuple[Turn, Turn]] = defaultdict(lambda: (Turn(), Turn()))
    endpoint = f"ipc://{folder}/z"
    with ExitStack() as stack:
        cameras = {name: stack.enter_context(FakeCamera(small)) for name in HEALTHY}
        ill = stack.enter_context(FakeCamera(small))
        head = (
            'model: {path: none}\nengine: {kind: "null", latency_ms: 5}\nbatch: {max: 8}\n'
            f"sinks: [{{kind: zmq, bind: '{endpoint}', ring: 1024, hwm: 10000}}]\nstreams:\n"
        ) + "".join(STREAM.format(name=name, url=camera.url) for name, camera in cameras.items())
        running = stack.enter_context(daemon(folder, head))
        subscriber = Subscriber(endpoint)
        until(lambda: all(len(subscriber.frames[name]) > FPS for name in HEALTHY), 30)
        for _ in range(rounds):
            before = turn(subscriber, cameras, seconds)
            for fault in faults:
                if fault != "alone":
                    ill.alternate = hevc if fault.startswith("codec") else large
                    ill.set("none" if fault == "sound" else fault)
                    running.reload(head + STREAM.format(name="ill", url=ill.url))
                beside = turn(subscriber, cameras, seconds)
                if fault != "alone":
                    running.reload(head)
                after = turn(subscriber, cameras, seconds)
                found[fault][0].add(beside)
                found[fault][1].add(before)
                found[fault][1].add(after)
                before = after
        for name in HEALTHY:
            assert running.value("streamd_stream_reconnects_total", stream=name) == 0, name
        assert running.stop() == 0
        subscriber.close()
    return dict(found)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=6, help="of a turn")
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--faults", nargs="+", metavar="NAME[:ARG]")
    options.add_argument("--json", type=Path)
    args = options.parse_args()
    # Faults that start after a while by default start immediately here.
    at_once = {"silence": "silence:0.5", "rtcp_only": "rtcp_only:0.5", "resize": "resize:0.5", "codec": "codec:0.5"}
    faults = args.faults or ["alone", "sound", *(at_once.get(name, name) for name in FAULTS if name != "none")]
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), faults, args.seconds, args.rounds)
    print("| beside | rate of the slowest, alone → beside | change | p99 alone → beside, ms | change |")
    print("|---|---|---|---|---|")
    for fault, (beside, alone) in found.items():
        rates, p99s = (alone.rate, beside.rate), (alone.p99, beside.p99)
        print(
            f"| `{fault}` | {rates[0]:.1%} → {rates[1]:.1%} | {rates[1] / rates[0] - 1:+.1%} "
            f"| {p99s[0]:.2f} → {p99s[1]:.2f} | {p99s[1] / p99s[0] - 1:+.0%} |"
        )
    if args.json:
        args.json.write_text(
            json.dumps({f: {"beside": [b.rate, b.p99], "alone": [a.rate, a.p99]} for f, (b, a) in found.items()})
        )


if __name__ == "__main__":
    main()
