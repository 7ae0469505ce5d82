"""What a box costs beside the same daemon alone: both run at the same time with the same streams, on real raylets.

usage: python -m tests.workers.fleet.overhead [--streams 12] [--fps 25] [--rounds 10] [--seconds 12] [--model ONNX]

Prints the CPU time of a published frame of both daemons, round by round, and CPU and memory of all that belongs to a
fleet besides the daemon. Ray's own processes are told apart; the actors are Ray's worker processes with our code.

Two daemons of the same kind differ by 5 % as long as they run. Two things make that small. Each stream has a rate of
its own: with one rate for all, frames of a daemon come at the same moments all the time, and those of the other one at
others, so that batches differ. And both daemons are started again for each round, which changes where their memory is.
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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from streamd.workers.fleet import keeper
from tests.events.journals import until
from tests.sinks.brokers import free_port
from tests.workers.fleet.rays import NULL, PATIENCE_S, Running, fleet

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
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=12.0, help="that a round measures")
    parser.add_argument("--model", help="with OpenVINO; default: the null engine")
    args = parser.parse_args()
    rates = [args.fps * (0.92 + 0.16 * i / max(1, args.streams - 1)) for i in range(args.streams)]
    model = f"model: {{path: {args.model}}}\nengine: {{kind: openvino}}\n" if args.model else NULL
    with fleet(1, args.streams, rates=rates, model=model) as running:
        others = _others(running)
        began, before = time.monotonic(), {name: all_cpu(p) for name, p in others.items()}
        rounds = []
        for i in range(args.rounds):
            with _alone(running.file) as alone:
                box = _again(running)
                rounds.append(Round.measure(alone, box, args.seconds))
                print(f"{i + 1:3}: {rounds[-1]}", flush=True)
                if i == args.rounds - 1:
                    print(f"daemon alone       {memory(alone[0])}")
                    print(f"daemon of the box  {memory(box[0])}")
        _report(rounds)
        spent = time.monotonic() - began
        for name, process in sorted(others.items()):
            print(f"{name:18} {memory(process)}, {(all_cpu(process) - before[name]) / spent:.2%} of a core")
        notes = keeper.read_notes(running.rays.box("n1"))
        assert notes.keeper is not None
        print(f"keeper             {memory(psutil.Process(notes.keeper.pid))}")


Daemon = tuple[psutil.Process, str]
"""Its process and the address of its metrics."""


def _others(running: Running) -> dict[str, psutil.Process]:
    """The actors."""
    found: dict[str, psutil.Process] = {}
    for process in (*running.rays.processes("n1"), *running.rays.head()):
        name = " ".join(process.cmdline()[:1])
        found |= {each: process for each in ("BoxActor", "CoordinatorActor") if name.startswith(f"ray::{each}")}
    return found


@contextlib.contextmanager
def _alone(of: Path) -> Iterator[Daemon]:
    """A daemon alone with the streams and sinks of a fleet; it publishes."""
    port = free_port()
    file = of.with_name("alone.yaml")
    # The same subjects as the box: under others nobody has set up a JetStream, and the sink would send nothing.
    file.write_text(f"{of.read_text()}workers: 1\nmetrics: {{listen: '127.0.0.1:{port}'}}\n")
    # A session of its own, as the box has: Linux divides the processors among sessions first.
    with file.with_suffix(".log").open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "streamd", "run", str(file)], stdout=log, stderr=log, start_new_session=True
        )
    try:
        until(lambda: _sent(f"127.0.0.1:{port}"), PATIENCE_S)
        yield psutil.Process(child.pid), f"127.0.0.1:{port}"
    finally:
        child.terminate()
        child.wait(30)


def _again(running: Running) -> Daemon:
    """Has the box start its daemon again; it publishes."""
    folder = running.rays.box("n1")
    before = keeper.read_notes(folder).daemon
    assert before is not None
    before.end(30)  # a daemon that was told to end is no failure, after which its keeper would wait
    until(lambda: running.whole() and keeper.read_notes(folder).daemon not in (None, before), PATIENCE_S)
    daemon = keeper.read_notes(folder).daemon
    assert daemon is not None

    def address() -> str:
        return running.status().boxes[0].metrics or ""

    until(lambda: address() and _sent(address()), PATIENCE_S)
    return psutil.Process(daemon.pid), address()


@dataclass(frozen=True)
class Round:
    """CPU seconds by thread and frames published, of the daemon alone and of that in a fleet."""

    spent: tuple[dict[str, float], dict[str, float]]
    frames: tuple[float, float]
    seconds: float

    @classmethod
    def measure(cls, alone: Daemon, box: Daemon, seconds: float) -> Round:
        """Begins a little later: until then, both have work to do that belongs to their start."""
        time.sleep(3)
        first = [(cpu(process), frames(address)) for process, address in (alone, box)]
        time.sleep(seconds)
        last = [(cpu(process), frames(address)) for process, address in (alone, box)]
        one, other = (
            {name: at - was[0].get(name, 0.0) for name, at in now[0].items()}
            for was, now in zip(first, last, strict=True)
        )
        return cls((one, other), (last[0][1] - first[0][1], last[1][1] - first[1][1]), seconds)

    @property
    def each(self) -> tuple[float, float]:
        """Microseconds a frame."""
        one, other = (1e6 * sum(s.values()) / n for s, n in zip(self.spent, self.frames, strict=True))
        return one, other

    @property
    def ratio(self) -> float:
        """Of what a frame costs in a fleet to what it costs alone."""
        return self.each[1] / self.each[0]

    def __str__(self) -> str:
        rates = [n / self.seconds for n in self.frames]
        return (
            f"alone {self.each[0]:6.1f} µs a frame ({rates[0]:.0f}/s), in a fleet {self.each[1]:6.1f} "
            f"({rates[1]:.0f}/s): {self.ratio:.3f}"
        )


def _report(rounds: list[Round]) -> None:
    ratios = [r.ratio for r in rounds]
    mean, error = statistics.mean(ratios), statistics.stdev(ratios) / math.sqrt(len(ratios))
    print(f"ratio {mean:.4f} ± {2 * error:.4f} (two standard errors), median {statistics.median(ratios):.4f}")
    counts = [sum(r.frames[i] for r in rounds) for i in (0, 1)]
    print("threads, µs a frame: alone, in a fleet")
    for name in sorted({n for r in rounds for s in r.spent for n in s}):
        sums = [1e6 * sum(r.spent[i].get(name, 0.0) for r in rounds) / counts[i] for i in (0, 1)]
        print(f"  {name:16} {sums[0]:7.2f} {sums[1]:7.2f}")


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
