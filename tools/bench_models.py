#!/usr/bin/env python3
"""Compares float and INT8 models on this machine's backend: latency of one picture and throughput; medians of
interleaved rounds.

    python tools/bench_models.py FLOAT.onnx INT8.onnx … [--engine openvino|tensorrt] [--precision f32] [--threads N]

Uses the daemon's own backend without preprocessing: from a prepared input to the network's outputs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from streamd.engine import EngineConfig, ModelSettings, open_backend
from streamd.sources import open_source
from streamd.sources.synthetic import SyntheticStreamSettings
from streamd.telemetry.logs import configure


class Runner:
    """One model, opened for latency or for throughput."""

    def __init__(self, model: str, engine: dict[str, Any], *, live: bool) -> None:
        from pydantic import TypeAdapter

        settings = TypeAdapter(EngineConfig).validate_python(engine)
        self.backend = open_backend(settings, ModelSettings(path=model), live=live)
        self.backend.start()
        source = open_source(SyntheticStreamSettings(id="s", width=640, height=640, fps=0, count=1))
        source.open()
        frames = list(source.frames())
        for slot in self.backend.slots:
            self.backend.preprocess(slot, frames)

    def latency_ms(self, rounds: int) -> list[float]:
        """Latency of one picture after the other."""
        slot, times = self.backend.slots[0], []
        for _ in range(rounds):
            begin = time.perf_counter()
            self.backend.infer(slot)
            self.backend.collect(slot)
            times.append((time.perf_counter() - begin) * 1e3)
        return times

    def throughput(self, seconds: float) -> float:
        """Pictures per second with all slots in flight."""
        slots = self.backend.slots
        for slot in slots:
            self.backend.infer(slot)
        begin, done = time.perf_counter(), 0
        while time.perf_counter() - begin < seconds:
            slot = slots[done % len(slots)]
            self.backend.collect(slot)
            self.backend.infer(slot)
            done += 1
        elapsed = time.perf_counter() - begin
        for slot in slots:
            self.backend.collect(slot)
        return done / elapsed


def main() -> int:
    """Measures and prints."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("models", nargs="+", help="the others are compared with the first")
    p.add_argument("--engine", choices=("openvino", "tensorrt"), default="openvino")
    p.add_argument("--precision", choices=("auto", "f32", "bf16", "f16"), default="auto", help="OpenVINO's arithmetic")
    p.add_argument("--threads", type=int, help="OpenVINO's threads")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--json", metavar="FILE")
    args = p.parse_args()
    configure("warning")
    engine: dict[str, Any] = {"kind": args.engine}
    if args.engine == "openvino":
        engine |= {"precision": args.precision, "threads": args.threads}
    latencies: dict[str, list[float]] = {m: [] for m in args.models}
    rates: dict[str, list[float]] = {m: [] for m in args.models}
    for live, found in ((True, latencies), (False, rates)):
        runners = {m: Runner(m, engine, live=live) for m in args.models}
        for turn in range(args.rounds + 1):
            for model, runner in runners.items():
                values = runner.latency_ms(50) if live else [runner.throughput(2.0)]
                if turn:  # the first round is for warming up
                    found[model] += values
        for runner in runners.values():
            runner.backend.close()
    print(f"{'model':<36}{'p50 ms':>9}{'p99 ms':>9}{'faster':>8}{'images/s':>10}{'more':>7}")
    table: dict[str, Any] = {}
    for model in args.models:
        ordered = sorted(latencies[model])
        p50, p99 = statistics.median(ordered), ordered[int(len(ordered) * 0.99)]
        rate = statistics.median(rates[model])
        table[model] = {"p50_ms": round(p50, 3), "p99_ms": round(p99, 3), "images_s": round(rate, 1)}
        first = table[args.models[0]]
        print(
            f"{Path(model).name:<36}{p50:>9.2f}{p99:>9.2f}{first['p50_ms'] / p50:>7.2f}x{rate:>10.1f}"
            f"{rate / first['images_s']:>6.2f}x"
        )
    if args.json:
        Path(args.json).write_text(json.dumps(table, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
