"""What a box costs beside the same daemon alone: both run at the same time with the same streams, on real raylets.

usage: python -m tests.workers.fleet.overhead [--streams 12] [--fps 25] [--windows 12] [--seconds 5]

Prints the CPU time of a published frame of both daemons, window by window, and CPU and memory of all that belongs to
a fleet besides the daemon. Ray's own processes are told apart; the actors are Ray's worker processes with our code.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import time
import urllib.request

import psutil

from streamd.workers.fleet import keeper
from tests.events.journals import until
from tests.sinks.brokers import free_port
from tests.workers.fleet.rays import PATIENCE_S, fleet

MIB = 1 << 20


def frames(address: str) -> float:
    """Frames that a daemon has published."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        found = re.findall(rb"^streamd_frames_published_total\{.*\} ([0-9.e+]+)$", answer.read(), re.MULTILINE)
    return sum(map(float, found))


def cpu(process: psutil.Process) -> float:
    """Seconds."""
    times = process.cpu_times()
    return float(times.user + times.system)


def memory(process: psutil.Process) -> str:
    """As text: resident, and what would be free without it."""
    found = process.memory_full_info()
    return f"{found.rss / MIB:6.1f} MiB resident, {found.uss / MIB:6.1f} MiB of its own"


def main() -> None:
    """Measures."""
    parser = argparse.ArgumentParser(description="What a box costs beside the same daemon alone.")
    parser.add_argument("--streams", type=int, default=12)
    parser.add_argument("--fps", type=float, default=25.0)
    parser.add_argument("--windows", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=5.0)
    args = parser.parse_args()
    with fleet(1, args.streams, fps=args.fps) as running:
        [box] = running.status().boxes
        assert box.metrics is not None
        port = free_port()
        file = running.file.with_name("alone.yaml")
        # The same subjects as the box: under others nobody has set up a JetStream, and the sink would send nothing.
        text = running.file.read_text()
        file.write_text(f"{text}workers: 1\nmetrics: {{listen: '127.0.0.1:{port}'}}\n")
        child = subprocess.Popen([sys.executable, "-m", "streamd", "run", str(file)], stdout=subprocess.DEVNULL,
                                 stderr=subprocess.DEVNULL)  # fmt: skip
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
            began, before = time.monotonic(), {name: cpu(p) for name, p in others.items()}
            ratios = []
            for i in range(args.windows):
                was = [(cpu(p), frames(a)) for p, a in ((alone, f"127.0.0.1:{port}"), (inside, box.metrics))]
                time.sleep(args.seconds)
                now = [(cpu(p), frames(a)) for p, a in ((alone, f"127.0.0.1:{port}"), (inside, box.metrics))]
                each = [1e6 * (n[0] - w[0]) / (n[1] - w[1]) for n, w in zip(now, was, strict=True)]
                ratios.append(each[1] / each[0])
                print(
                    f"{i + 1:3}: alone {each[0]:6.1f} µs a frame, in a fleet {each[1]:6.1f}: {ratios[-1]:.3f}",
                    flush=True,
                )
            spent = time.monotonic() - began
            print(f"median {statistics.median(ratios):.3f}, from {min(ratios):.3f} to {max(ratios):.3f}")
            print(f"daemon alone       {memory(alone)}")
            print(f"daemon of the box  {memory(inside)}")
            for name, process in sorted(others.items()):
                share = (cpu(process) - before[name]) / spent
                print(f"{name:18} {memory(process)}, {share:.2%} of a core")
        finally:
            child.terminate()
            child.wait(30)


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
