#!/usr/bin/env python3
"""What classifiers cost the detector: runs a configuration with its classifiers and without them, in turn.

Streams should be files without pace, which end by themselves or are cut off by --seconds.

usage: bench_classifiers.py CONFIG [--rounds N] [--seconds S]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time

from streamd.config import Config
from streamd.config.loader import load
from streamd.runtime.daemon import Daemon
from streamd.telemetry.notify import Notifier


def run(config: Config, seconds: float) -> dict[str, float]:
    """Frames and crops of one run, and the processor time of a frame, which depends less on other load."""
    daemon = Daemon(config, notifier=Notifier({}))
    began, cpu = time.monotonic(), time.process_time()
    daemon.run(seconds, handle_signals=False)
    passed, cpu = time.monotonic() - began, time.process_time() - cpu
    totals = {"classified": 0.0, "classifier_missed": 0.0, "classifier_busy_seconds": 0.0}
    for family in daemon.registry.collect():
        name = family.name.removeprefix("streamd_")
        if name in totals:
            totals[name] = sum(sample.value for sample in family.samples if sample.name.endswith("_total"))
    frames = sum(stream.published for stream in daemon.metrics.streams())
    return {
        "fps": frames / passed, "crops_per_s": totals["classified"] / passed,
        "crops_per_frame": totals["classified"] / max(1, frames), "missed": totals["classifier_missed"],
        "busy": totals["classifier_busy_seconds"] / passed, "cpu_ms_per_frame": cpu * 1e3 / max(1, frames),
    }  # fmt: skip


def main() -> int:
    """Runs the rounds, prints each, then the ratio of the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("config")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15.0)
    args = parser.parse_args()
    config = load(args.config).config
    kinds = {"without": config.model_copy(update={"classifiers": ()}), "with": config}
    keys = ("fps", "cpu_ms_per_frame")
    found: dict[tuple[str, str], list[float]] = {(name, key): [] for name in kinds for key in keys}
    for number in range(args.rounds):
        for name in list(kinds)[:: 1 if number % 2 else -1]:
            result = run(kinds[name], args.seconds)
            for key in keys:
                found[name, key].append(result[key])
            told = {key: round(value, 3) for key, value in result.items()}
            print(json.dumps({"classifiers": name, **told, "load": os.getloadavg()[0]}), flush=True)
    ratios = {key: statistics.median(found["with", key]) / statistics.median(found["without", key]) for key in keys}
    print(json.dumps({"with / without": {key: round(value, 4) for key, value in ratios.items()}}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
