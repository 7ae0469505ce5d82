"""What a daemon of many streams needs and serves while nothing happens to it: memory, rate, latency, drops."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from gauge import slope
from memory_parts import Parts, columns, family, growth, mappings, parts

from tests.behaviour.daemon import Running

EVERY_S = 10.0
SETTLE_S = 60.0
"""Does not count for the slopes of a long rest: pools and queues fill."""
_LATENCY = "streamd_capture_to_publish_seconds_bucket"


def device() -> tuple[float, float, float] | None:
    """Of the GPUs that CUDA_VISIBLE_DEVICES leaves, by nvidia-smi: MiB in use, and the percentages of the time in which
    they and their decoders worked (mean); None without one."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    which = ["-i", visible] if visible else []
    query = "--query-gpu=memory.used,utilization.gpu,utilization.decoder"
    with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
        told = subprocess.run(
            ["nvidia-smi", *which, query, "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=10, check=True,
        ).stdout  # fmt: skip
        rows = [[float(value) for value in line.split(",")] for line in told.splitlines()]
        memory, gpu, decoder = (list(column) for column in zip(*rows, strict=True))
        return sum(memory), sum(gpu) / len(gpu), sum(decoder) / len(decoder)
    return None


def quantile(buckets: Mapping[float, int], share: float) -> float | None:
    """The upper bound of the bucket in which it lies, seconds; None without observations.

    Args:
        buckets: observations at or below each upper bound.
        share: 0 to 1.
    """
    total = buckets.get(math.inf, 0.0)
    return next((bound for bound in sorted(buckets) if buckets[bound] >= share * total), None) if total else None


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at the daemon."""

    at: float
    """Monotonic seconds."""
    parts: Mapping[str, Parts]
    """By process."""
    device: float | None
    """MiB in use."""
    busy: tuple[float, float] | None
    """Percent of the time in which the GPU and its decoders worked."""
    cpu: float
    """Seconds that its processes have used."""
    frames: Counter[str]
    """Frames by what became of them: received, published, "dropped REASON"."""
    received: Counter[str]
    """Frames by stream."""
    latency: Counter[float]
    """Frames by the upper bound of their latency, seconds; cumulative."""

    @property
    def rss(self) -> float:
        """MiB of all its processes together; what they share counts several times."""
        return sum(part.sum for part in self.parts.values())


def look(running: Running) -> Sample:
    """Takes a sample."""
    frames: Counter[str] = Counter()
    received: Counter[str] = Counter()
    latency: Counter[float] = Counter()
    for (name, labels), value in running.metrics().items():
        told = dict(labels)
        if name == _LATENCY:
            latency[float(told["le"])] += int(value)
        elif name in ("streamd_frames_received_total", "streamd_frames_published_total"):
            kind = name.split("_")[2]
            frames[kind] += int(value)
            if kind == "received":
                received[told["stream"]] += int(value)
        elif name == "streamd_frames_dropped_total":
            frames[f"dropped {told['reason']}"] += int(value)
    memory: dict[str, Parts] = {}
    cpu = 0.0
    for name, pid in family(running.process.pid).items():
        with contextlib.suppress(OSError, psutil.NoSuchProcess):
            memory[name] = parts(pid)
            cpu += sum(psutil.Process(pid).cpu_times()[:2])
    seen = device()
    mib, busy = (seen[0], seen[1:]) if seen is not None else (None, None)
    return Sample(time.monotonic(), memory, mib, busy, cpu, frames, received, latency)


def mapped(running: Running) -> dict[str, Counter[str]]:
    """The mappings of each of its processes."""
    found = {}
    for name, pid in family(running.process.pid).items():
        with contextlib.suppress(OSError):
            found[name] = mappings(pid)
    return found


def rest(running: Running, seconds: float, every_s: float = EVERY_S, memory_log: Path | None = None) -> dict[str, Any]:
    """Samples for `seconds`, and reports. A busy daemon may be too slow for a sample, which is then missing.

    Args:
        running: the daemon.
        seconds: how long.
        every_s: between samples.
        memory_log: where `memory_log` writes.
    """
    until, samples, missing = time.monotonic() + seconds, list[Sample](), 0
    settled, before = time.monotonic() + _settle(seconds), None
    while True:
        if before is None and time.monotonic() >= settled:
            before = mapped(running)
        try:
            samples.append(look(running))
        except OSError:
            missing += 1
        left = until - time.monotonic()
        if left <= 0:
            break
        time.sleep(min(every_s, left))
    after = mapped(running)
    grown = {name: growth(of, after[name]) for name, of in (before or {}).items() if name in after}
    report: dict[str, Any] = told(samples) if len(samples) > 1 else {"samples": len(samples)}
    if memory_log is not None:
        report["in_use"] = in_use(memory_log, settled)
    return report | {"mappings_grown_mib": grown, "missing_samples": missing}


def _settle(seconds: float) -> float:
    return SETTLE_S if seconds >= 3 * SETTLE_S else 0.0


def told(samples: list[Sample]) -> dict[str, Any]:
    """Rates and drops between the first and the last sample, and slopes.

    The daemon's metrics may be 5 s old, so that rates over a short time are coarse; drops and latencies are exact.
    """
    first, last = samples[0], samples[-1]
    seconds = last.at - first.at
    frames, latency = last.frames - first.frames, last.latency - first.latency
    rates = [(last.received[s] - first.received[s]) / seconds for s in last.received]
    found: dict[str, Any] = {
        "seconds": round(seconds, 1),
        "received_per_s": round(frames["received"] / seconds, 1),
        "published_per_s": round(frames["published"] / seconds, 1),
        "slowest_and_fastest_per_s": [round(min(rates), 2), round(max(rates), 2)] if rates else None,
        "dropped": {name.removeprefix("dropped "): n for name, n in frames.items() if name.startswith("dropped ")},
        "p50_below_ms": _ms(quantile(latency, 0.5)),
        "p99_below_ms": _ms(quantile(latency, 0.99)),
        "cpu_ms_per_frame": round((last.cpu - first.cpu) * 1e3 / max(1, frames["received"]), 3),
        "rss_mib": [round(first.rss, 1), round(last.rss, 1)],
    }
    settled = [s for s in samples if s.at - first.at >= _settle(seconds)]
    minutes = [(s.at - first.at) / 60 for s in settled]
    line = slope(minutes, [s.rss for s in settled])
    found["rss_mib_per_min"] = [round(line.per, 3), round(line.error, 3)]
    device = [s.device for s in settled if s.device is not None]
    if len(device) == len(settled):
        line = slope(minutes, device)
        found |= {"device_mib": [device[0], device[-1]]}
        found["device_mib_per_min"] = [round(line.per, 3), round(line.error, 3)]
    busy = [s.busy for s in samples if s.busy is not None]
    if busy:
        found["gpu_and_decoder_percent"] = [round(sum(column) / len(busy), 1) for column in zip(*busy, strict=True)]
    found["rss_mib_samples"] = [round(s.rss, 1) for s in samples]
    lasting = _lasting(settled)
    found["processes"] = {name: _process(minutes, [s.parts[name] for s in settled]) for name in lasting}
    found["anon_mib_samples"] = {name: [round(s.parts[name].anon, 1) for s in settled] for name in lasting}
    return found


def in_use(folder: Path, since: float) -> dict[str, Any]:
    """What `memory_log` wrote since `since` (monotonic): MiB that malloc had given out in all processes that lasted,
    at first, at last, MiB a minute and its standard error; the same of Python's blocks; MiB a minute of each process.
    """
    logs: list[list[tuple[float, ...]]] = []
    for path in sorted(folder.iterdir(), key=lambda path: int(path.name)):
        lines = [tuple(map(float, line.split())) for line in path.read_text(encoding="ascii").splitlines()]
        logs.append([line for line in lines if line[0] >= since])
    longest = max(map(len, logs), default=0)
    logs = [log for log in logs if len(log) > 2 and len(log) >= longest - 2]  # not the passers-by
    if not logs:
        return {"processes": 0}
    count = min(map(len, logs))
    minutes = [line[0] / 60 for line in logs[0][:count]]
    found: dict[str, Any] = {"processes": len(logs)}
    for name, column, unit in (("malloc_mib", 1, 2**20), ("python_blocks", 2, 1)):
        total = [sum(log[i][column] for log in logs) / unit for i in range(count)]
        line = slope(minutes, total)
        found[name] = [round(number, 3) for number in (total[0], total[-1], line.per, line.error)]
    each = (slope(minutes, [line[1] / 2**20 for line in log[:count]]) for log in logs)
    found["malloc_mib_per_min"] = [round(line.per, 3) for line in each]
    return found


def _lasting(samples: list[Sample]) -> list[str]:
    """Processes that every sample has."""
    return [name for name in samples[0].parts if all(name in s.parts for s in samples)] if samples else []


def _process(minutes: list[float], samples: list[Parts]) -> dict[str, list[float]]:
    """By kind of memory: MiB at first and at last, least and most, MiB a minute and its standard error."""
    found = {}
    for kind, values in columns(samples):
        line = slope(minutes, values)
        numbers = (values[0], values[-1], min(values), max(values), line.per, line.error)
        found[kind] = [round(number, 2) for number in numbers]
    return found


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 2)
