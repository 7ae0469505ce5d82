"""What a box costs beside the same daemon alone: both run at the same time with the same streams, on real raylets.

usage: python -m tests.workers.fleet.overhead [--streams 12] [--fps 25] [--windows 30] [--seconds 4] [--model ONNX]

Prints the CPU time of a published frame of both daemons, window by window, and CPU and memory of all that belongs to
a fleet besides the daemon. Ray's own processes are told apart; the actors are Ray's worker processes with our code.

Each stream has a rate of its own. With the same rate for all, frames of one daemon come at the same moments as long as
it runs, and those of the other one at others: batches differ, and two daemons of the same kind by 5 % and more.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import psutil

from streamd.workers.fleet import keeper
from tests.events.journals import until
from tests.sinks.brokers import free_port
from tests.workers.fleet.rays import NULL, PATIENCE_S, fleet

MIB = 1 << 20


def frames(address: str) -> float:
    """Frames that a daemon has published."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        found = re.findall(rb"^streamd_frames_published_total\{.*\} ([0-9.e+]+)$", answer.read(), re.MULTILINE)
    return sum(map(float, found))


def cpu(process: psutil.Process) -> dict[str, float]:
    """Seconds of all threads, by their names, to the microsecond: psutil has hundredths of a second."""
    found: dict[str, float] = {}
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        with contextlib.suppress(OSError):
            name, spent = (task / "comm").read_text().strip(), int((task / "schedstat").read_text().split()[0])
            name = re.sub(r"^source-.*", "source", name)
            found[name] = found.get(name, 0.0) + spent / 1e9
    return found


def all_cpu(process: psutil.Process) -> float:
    """Seconds."""
    return sum(cpu(process).values())


def memory(process: psutil.Process) -> str:
    """As text: resident, and what would be free without it."""
    found = process.memory_full_info()
    return f"{found.rss / MIB:6.1f} MiB resident, {found.uss / MIB:6.1f} MiB of its own"


def main() -> None:
    """Measures."""
    parser = argparse.ArgumentParser(description="What a box costs beside the same daemon alone.")
    parser.add_argument("--streams", type=int, default=12)
    parser.add_argument("--fps", type=float, default=25.0, help="mean of the streams; 0: as fast as possible")
    parser.add_argument("--windows", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--model", help="with OpenVINO; default: the null engine")
    args = parser.parse_args()
    rates = [args.fps * (0.92 + 0.16 * i / max(1, args.streams - 1)) for i in range(args.streams)]
    model = f"model: {{path: {args.model}}}\nengine: {{kind: openvino}}\n" if args.model else NULL
    with fleet(1, args.streams, rates=rates, model=model) as running:
        [box] = running.status().boxes
        assert box.metrics is not None
        port = free_port()
        file = running.file.with_name("alone.yaml")
        # The same subjects as the box: under others nobody has set up a JetStream, and the sink would send nothing.
        text = running.file.read_text()
        file.write_text(f"{text}workers: 1\nmetrics: {{listen: '127.0.0.1:{port}'}}\n")
        # A session of its own, as the box has: Linux divides the processors among sessions first.
        with file.with_suffix(".log").open("wb") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "streamd", "run", str(file)], stdout=log, stderr=log, start_new_session=True
            )
        try:
            alone = psutil.Process(child.pid)
            until(lambda: _sent(f"127.0.0.1:{port}"), PATIENCE_S)
            notes = keeper.read_notes(running.rays.box("n1"))
            assert notes.daemon is not None
            assert notes.keeper is not None
            inside = psutil.Process(notes.daemon.pid)
            others = {"keeper": psutil.Process(notes.keeper.pid)}
            for process in (*running.rays.processes("n1"), *running.rays.head()):
                name = process.cmdline()[:1]
                for actor in ("BoxActor", "CoordinatorActor"):
                    if name and name[0].startswith(f"ray::{actor}"):
                        others[actor] = process
            time.sleep(5)
            _compare(args, ((alone, f"127.0.0.1:{port}"), (inside, box.metrics)), others)
        finally:
            child.terminate()
            child.wait(30)


def _compare(
    args: argparse.Namespace, pair: Sequence[tuple[psutil.Process, str]], others: dict[str, psutil.Process]
) -> None:
    began, before = time.monotonic(), {name: all_cpu(p) for name, p in others.items()}
    ratios = []
    first = last = [(cpu(process), frames(address)) for process, address in pair]
    for i in range(args.windows):
        was = last
        time.sleep(args.seconds)
        last = [(cpu(process), frames(address)) for process, address in pair]
        each = [
            1e6 * (sum(n[0].values()) - sum(w[0].values())) / (n[1] - w[1]) for n, w in zip(last, was, strict=True)
        ]  # fmt: skip
        ratios.append(each[1] / each[0])
        print(f"{i + 1:3}: alone {each[0]:6.1f} µs a frame, in a fleet {each[1]:6.1f}: {ratios[-1]:.3f}", flush=True)
    spent = time.monotonic() - began
    counts = [n[1] - w[1] for n, w in zip(last, first, strict=True)]
    mean, error = statistics.mean(ratios), statistics.stdev(ratios) / math.sqrt(len(ratios))
    print(f"frames/s: alone {counts[0] / spent:.0f}, in a fleet {counts[1] / spent:.0f}")
    print(f"ratio {mean:.4f}, 95 % interval {mean - 2 * error:.4f} to {mean + 2 * error:.4f}")
    print("threads, µs a frame: alone, in a fleet")
    for name in sorted({*last[0][0], *last[1][0]}):
        spans = [1e6 * (n[0].get(name, 0.0) - w[0].get(name, 0.0)) for n, w in zip(last, first, strict=True)]
        print(f"  {name:16} {spans[0] / counts[0]:7.2f} {spans[1] / counts[1]:7.2f}")
    print(f"daemon alone       {memory(pair[0][0])}")
    print(f"daemon of the box  {memory(pair[1][0])}")
    for name, process in sorted(others.items()):
        print(f"{name:18} {memory(process)}, {(all_cpu(process) - before[name]) / spent:.2%} of a core")


def _sent(address: str) -> bool:
    """Whether its sink delivers, as the box's does."""
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            found = re.findall(rb"^streamd_sink_messages_total\{.*\} ([0-9.e+]+)$", answer.read(), re.MULTILINE)
    except OSError:
        return False
    return sum(map(float, found)) > 100


if __name__ == "__main__":
    main()
