#!/usr/bin/env python3
"""How many cameras a machine serves with `look.when: motion`, beside the same daemon that looks at every frame.

    python tools/glance_cameras.py DAY --model MODEL [--seconds 30] [--p99 250] [--look '{hold_s: 1}'] [--json FILE]

DAY is a clip, best one of `glance_eval.py --day --write`: every camera plays it in real time and in a loop, each from
another place. `streamd run` is a process of its own; more and more cameras are given to it, until the 99th percentile
of the latency (from decoded to published: a clip's B-frames delay the rest) is beyond --p99 milliseconds, more than a
frame in a thousand is dropped, or more than --thinned of the frames with motion are not looked at. First, what a frame
costs is measured, in milliseconds of a core: d to decode it, g for the small picture and the gate, i for the network,
which bounds the gain by (d + i) / (d + g + s i), with s the share that is looked at."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
import zmq
from bench import bare, decode_ms
from bench_daemon import free_port
from glance_day import frames_of
from prometheus_client.parser import text_string_to_metric_families

from streamd.analysis.glance.gate import Gate
from streamd.analysis.glance.settings import LookSettings
from streamd.flow.glimpse import Glimpse
from streamd.sinks.message import DetectionsMessage, decode

WARM_UP_S = 12.0
"""A gate looks at everything for ten seconds."""
DROPS = 0.001
"""Share of the frames that may be dropped."""
TRIES = 5
GOLDEN = 0.618034
"""Places in the clip that are so far apart, in its length, are spread evenly, however many there are."""
REASONS = ("busy", "overload")
COUNTERS = ("received", "published", "dropped", "looked", "glanced")


@dataclass(slots=True)
class Costs:
    """Milliseconds of a core a frame."""

    decode: float
    glance: float
    infer: float

    def gain(self, share: float) -> float:
        """How many times the cameras, if this share of the frames is looked at."""
        return (self.decode + self.infer) / (self.decode + self.glance + share * self.infer)


@dataclass(slots=True)
class Trial:
    """A daemon with so many cameras."""

    cameras: int
    gated: bool
    p99_ms: float
    received: int
    dropped: int
    looked: int
    busy: int
    """Frames without motion that were to be looked at and gave way."""
    overload: int
    """Frames with motion that were not looked at."""
    offered: float
    """Frames that the cameras sent, of those that they should have."""
    cores: float
    """CPU that the daemon took."""

    def passed(self, limit_ms: float, thinned: float) -> bool:
        """Whether the machine serves so many."""
        enough = self.overload <= thinned * (self.looked + self.overload)
        return self.p99_ms <= limit_ms and enough and self.dropped <= DROPS * self.received and self.offered > 0.99


def costs_of(clip: Path, model: Path, look: LookSettings, seconds: float = 4.0) -> Costs:
    """Measures a frame. The network is measured as fast as the machine can, on all its cores."""
    glimpse, spent, frames = Glimpse("clip", Gate(look, live=False)), 0.0, 0
    for frame in frames_of(clip):
        begin = time.thread_time()
        glimpse.frame(frame)
        spent += time.thread_time() - begin
        frames += 1
        if frames == 1500:
            break
    cores = len(os.sched_getaffinity(0))
    infer = cores * 1e3 / float(bare(str(model), seconds)["fps"])
    return Costs(float(decode_ms(str(clip))["p50"]), spent / max(frames, 1) * 1e3, infer)


class Latencies:
    """Receives messages in a thread, and keeps the latency of each frame that was looked at while `on`."""

    def __init__(self, endpoint: str) -> None:
        self.on, self.values, self._stop = False, list[float](), False
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.subscribe(b"streamd/1/")
        self._socket.connect(endpoint)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop:
            if self._socket.poll(100):
                message = decode(self._socket.recv_multipart())
                if self.on and isinstance(message, DetectionsMessage):
                    self.values.append(message.latency_ms.total - message.latency_ms.decode)

    def close(self) -> None:
        """Ends."""
        self._stop = True
        self._thread.join(5)
        self._context.destroy(linger=0)


def counters(port: int) -> dict[str, int]:
    """Sums of `COUNTERS` over all streams, and of `REASONS`."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = dict.fromkeys((*COUNTERS, *REASONS), 0)
    for family in text_string_to_metric_families(text):
        name = family.name.removeprefix("streamd_frames_")
        for sample in family.samples if name in COUNTERS else ():
            if sample.name.endswith("_total"):
                found[name] += int(sample.value)
                if (why := sample.labels.get("why")) in REASONS:
                    found[str(why)] += int(sample.value)
    return found


def configuration(args: argparse.Namespace, cameras: int, look: LookSettings | None, ports: tuple[int, int]) -> Any:
    """Of a daemon with so many cameras."""
    stream: dict[str, Any] = {"url": str(args.day.resolve()), "loop": True, "pace": "realtime", "decode": "software"}
    if look is not None:
        stream["look"] = look.model_dump(mode="json")
    model = args.model if args.model.startswith("builtin:") else str(Path(args.model).resolve())
    return {
        "model": {"path": model},
        "streams": [
            stream | {"id": f"c{i}", "start_s": round(i * GOLDEN % 1.0 * args.length * 0.98, 2)}
            for i in range(cameras)
        ],
        "tracking": {"kind": "bytetrack"},
        "sinks": [{"kind": "zmq", "bind": f"tcp://127.0.0.1:{ports[0]}", "hwm": 10_000, "ring": 4096}],
        "metrics": {"listen": f"127.0.0.1:{ports[1]}", "page": False},
        "logging": {"level": "error"},
    }  # fmt: skip


def trial(args: argparse.Namespace, cameras: int, look: LookSettings | None) -> Trial:
    """Runs a daemon with so many cameras; of no value if the machine does something else meanwhile."""
    ports = free_port(), free_port()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cameras.yaml"
        path.write_text(json.dumps(configuration(args, cameras, look, ports)))
        process = subprocess.Popen([sys.executable, "-m", "streamd", "run", str(path)])
        latencies = Latencies(f"tcp://127.0.0.1:{ports[0]}")
        try:
            _wait(process, ports[1], cameras)
            time.sleep(WARM_UP_S)
            before, cpu, begin = counters(ports[1]), _cpu(process.pid), time.monotonic()
            latencies.on = True
            time.sleep(args.seconds)
            latencies.on = False
            after, passed_s, spent = counters(ports[1]), time.monotonic() - begin, _cpu(process.pid) - cpu
        finally:
            process.terminate()
            process.wait(60)
            latencies.close()
    n = {key: after[key] - before[key] for key in after}
    p99 = float(np.percentile(latencies.values, 99)) if latencies.values else float("inf")
    looked = n["looked"] if look is not None else n["published"]
    return Trial(
        cameras, look is not None, round(p99, 1), n["received"], n["dropped"], looked, n["busy"], n["overload"],
        round(n["received"] / (cameras * args.rate * passed_s), 4), round(spent / passed_s, 3),
    )  # fmt: skip


def _cpu(pid: int) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _wait(process: subprocess.Popen[bytes], port: int, cameras: int) -> None:
    """Until every camera has sent something. Raises SystemExit: the daemon ended, or takes more than a minute."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"glance_cameras: streamd ended with exit code {process.returncode}, see above")
        try:
            if counters(port)["received"] >= cameras:
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise SystemExit("glance_cameras: the daemon took more than a minute to begin")


def most(run: Callable[[int], bool], first: int, step: int, tries: int = TRIES) -> int:
    """The largest number that `run` accepts, as far as `tries` calls tell; 0 if it accepts none.

    Args:
        run: whether the machine serves so many.
        first: where to begin.
        step: how far to go up or down; halved once both are known.
        tries: most calls.
    """
    least, beyond, n = 0, None, max(first, 1)
    for _ in range(tries):
        if run(n):
            least = max(least, n)
        else:
            beyond = n if beyond is None else min(beyond, n)
        if beyond is None:
            n += step
        elif beyond - least <= 1:
            break
        else:
            n = max(least + (beyond - least) // 2, beyond - step if least == 0 else 1, 1)
    return least


def main() -> int:
    """Runs the command."""
    summary, _, rest = (__doc__ or "").partition("\n\n")
    p = argparse.ArgumentParser(description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("day", type=Path, metavar="DAY")
    p.add_argument("--model", default="builtin:road6", help="path, or builtin:NAME (default: builtin:road6)")
    p.add_argument("--look", default="{}", help="settings of the section `look`, as YAML")
    p.add_argument("--seconds", type=float, default=30.0, help="of measurement with each number (default: 30)")
    p.add_argument("--p99", type=float, default=250.0, help="most milliseconds (default: 250)")
    p.add_argument("--thinned", type=float, default=0.02, help="see above (default: 0.02)")
    p.add_argument("--tries", type=int, default=TRIES, help=f"numbers of cameras tried each way (default: {TRIES})")
    p.add_argument("--first", type=int, nargs=2, metavar=("ALWAYS", "GATED"), help="default: by the costs")
    p.add_argument("--json", type=Path, metavar="FILE")
    args = p.parse_args()
    import av

    with av.open(str(args.day)) as container:
        stream = container.streams.video[0]
        args.rate = float(stream.average_rate or 25)
        args.length = float(container.duration or 0) / 1e6
    look = LookSettings(**{"when": "motion", **yaml.safe_load(args.look)})
    bundled = Path(__file__).parent.parent / "streamd" / "assets"
    model = bundled / f"{args.model[8:]}.onnx" if args.model.startswith("builtin:") else Path(args.model)
    costs = costs_of(args.day, model, look)
    print(f"a frame: d {costs.decode:.2f}, g {costs.glance:.2f}, i {costs.infer:.2f} ms of a core", flush=True)
    capacity = len(os.sched_getaffinity(0)) * 1e3 / args.rate
    found: dict[bool, Trial] = {}
    trials: list[Trial] = []
    for gated in (False, True):

        def run(n: int, gated: bool = gated) -> bool:
            each = trial(args, n, look if gated else None)
            trials.append(each)
            ok = each.passed(args.p99, args.thinned)
            if ok and (gated not in found or n > found[gated].cameras):
                found[gated] = each
            print(f"{'gated ' if gated else 'always'} {n:3} {'ok ' if ok else 'too many'} {each}", flush=True)
            return ok

        cost = costs.decode + (costs.glance + 0.2 * costs.infer if gated else costs.infer)
        first = args.first[gated] if args.first else max(1, round(0.85 * capacity / cost))
        most(run, first, max(1, round(0.08 * first)), args.tries)
    if len(found) == 2:
        gain, share = found[True].cameras / found[False].cameras, found[True].looked / found[True].received
        allowed, fifth = costs.gain(share), costs.gain(0.2)
        print(
            f"{found[False].cameras} cameras always, {found[True].cameras} gated: {gain:.2f} times; looked at "
            f"{100 * share:.1f} %; the costs allow {allowed:.2f} times with that ({gain / allowed:.2f} of it), "
            f"{fifth:.2f} with a fifth ({gain / fifth:.2f} of it)"
        )
    if args.json:
        args.json.write_text(json.dumps({"costs": asdict(costs), "trials": [asdict(t) for t in trials]}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
