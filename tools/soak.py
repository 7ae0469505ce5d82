#!/usr/bin/env python3
"""Compresses hours of field conditions into minutes: cameras that fail in every way, files, subscribers that come, go
and stall, reloads. Reports at the end whether any resource grows or any frame is unaccounted for.

    python tools/soak.py --minutes 30 [--cameras 12] [--crowd] [--backend openvino --model M.onnx] [--seed 1]
                         [--json out.json]

`streamd run` is a separate process; the cameras (tools/fakecam.py) and one subscriber that always reads are in this
one. `--crowd` adds ZeroMQ peers that take all they can, clients that scrape without a pause, a log that is not read,
and files that are rotated and removed (tools/soak_crowd.py). Every minute has 40 seconds of faults and 20 of rest, in
which every stream must recover; slopes are measured at the ends of the rests after the warm-up, which are comparable.
Exit code 1 if the result is bad."""

from __future__ import annotations

import argparse
import contextlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from fakecam import FAULTS, FakeCamera
from rtp_clip import Clip

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from soak_crowd import Crowd
from soak_watch import Keeper, Report, Watch, in_flight, log_summaries, rows, write_samples

from tests.behaviour.daemon import Running, daemon
from tests.clips import write_clip

TROUBLE_S, REST_S, CALM_S = 40.0, 20.0, 6.0
"""Seconds of every minute: faults, rest, and the end of the rest that counts for the slopes."""
SAMPLE_S = 2.0
FPS = 15
GUEST = """
import sys, zmq
socket = zmq.Context().socket(zmq.SUB)
socket.subscribe(b"")
socket.connect(sys.argv[1])
while True:
    socket.recv_multipart()
"""
ENGINES = {
    "null": 'model: {{path: none}}\nengine: {{kind: "null", latency_ms: 2}}',
    "openvino": "model: {{path: {model}}}\nengine: {{kind: openvino}}",
    "tensorrt": "model: {{path: {model}}}\nengine: {{kind: tensorrt}}",
}


class Cast:
    """The cameras and files, and their configuration."""

    def __init__(self, folder: Path, count: int, head: str, clips: list[Path], seed: int) -> None:
        self._head = head
        tune = {"tune": "zerolatency"}
        small = write_clip(folder / "small.mp4", frames=8 * FPS, size=(320, 192), fps=FPS, gop=FPS, options=tune)
        large = write_clip(folder / "large.mp4", frames=8 * FPS, size=(640, 384), fps=FPS, gop=FPS, options=tune)
        hevc = write_clip(
            folder / "hevc.mp4", frames=8 * FPS, size=(320, 192), fps=FPS, gop=FPS, codec="libx265",
            options=tune | {"x265-params": "log-level=none"},
        )  # fmt: skip
        self._small, self._large, self._hevc = Clip(small), Clip(large), Clip(hevc)
        self.file = clips[0] if clips else small
        played = [Clip(c) for c in clips] or [self._small, self._hevc]
        self.cameras = {f"cam{i}": FakeCamera(played[i % len(played)], seed=seed + i) for i in range(count)}
        self.usual = {
            name: f"url: '{camera.url}', transport: {'udp' if i % 4 == 3 else 'tcp'}"
            for i, (name, camera) in enumerate(self.cameras.items())
        } | {f"file{i}": f"url: '{self.file}', loop: true" for i in range(max(1, count // 4))}
        self.streams = dict(self.usual)

    def config(self) -> str:
        """The present streams as YAML."""
        limits = "open_timeout_s: 3, read_timeout_s: 2, reconnect: {initial_s: 0.2, max_s: 2}"
        streams = "".join(f"  - {{id: {name}, {text}, {limits}}}\n" for name, text in self.streams.items())
        return f"{self._head}streams:\n{streams}"

    def fault(self, name: str, camera: str) -> None:
        """Injects the fault `name` into `camera`."""
        own = self.cameras[camera]
        if name in ("resize", "codec"):
            hevc = own.clip.codec == "hevc"
            own.alternate = self._large if (name == "resize") != hevc else self._hevc
        own.set(name)
        if name in ("mute", "hang", "status", "unauthorized"):
            own.cut()  # it only affects a new connection


class Soak:
    """Alternates faults and rest."""

    def __init__(
        self, cast: Cast, running: Running, watch: Watch, keeper: Keeper, endpoint: str, seed: int,
        crowd: Crowd | None = None,
    ) -> None:  # fmt: skip
        self._crowd = crowd
        self._cast, self._running, self._watch, self._keeper = cast, running, watch, keeper
        self._endpoint = endpoint
        self._random = random.Random(seed)
        self._guests: list[subprocess.Popen[bytes]] = []
        self._extra = 0
        self.done: Counter[str] = Counter()
        """Number of faults by kind."""
        self.late: list[str] = []
        """Streams that had not come back at the end of a rest."""

    def minute(self, number: int) -> None:
        """One round."""
        self._watch.calm = False
        until = time.monotonic() + TROUBLE_S
        actions: list[Callable[[], None]] = [
            self._break,
            self._break,
            self._break,
            self._mend,
            self._guest,
            self._guest,
            self._reload,
        ]
        if (crowd := self._crowd) is not None:
            actions += [partial(action, self._running) for action in crowd.actions]
        while time.monotonic() < until:
            self._random.choice(actions)()
            time.sleep(self._random.uniform(0.2, 1.2))
        until = time.monotonic() + REST_S
        if crowd is not None:
            crowd.rest()
        self._rest()
        time.sleep(max(0.0, until - CALM_S - time.monotonic()))
        self._watch.calm = True
        time.sleep(max(0.0, until - time.monotonic()))
        if crowd is not None:
            crowd.look(self._running, number)
        for name in self._cast.usual:
            status = self._keeper.states.get(name)
            if status is None or status.state != "LIVE":
                text = "silent" if status is None else f"{status.state} {status.reason}"
                self.late.append(f"{name} {text} at the end of minute {number}")

    def _break(self) -> None:
        camera = self._random.choice(list(self._cast.cameras))
        fault = self._random.choice([f for f in FAULTS if f != "none"])
        self._cast.fault(fault, camera)
        self.done[f"fault {fault}"] += 1

    def _mend(self) -> None:
        ill = [camera for camera in self._cast.cameras.values() if camera.fault[0] != "none"]
        for camera in self._random.sample(ill, len(ill) // 2):
            camera.set("none")

    def _guest(self) -> None:
        """A subscriber comes, stalls, wakes, or is killed."""
        if len(self._guests) < 3 and self._random.random() < 0.5:
            self._guests.append(subprocess.Popen([sys.executable, "-c", GUEST, self._endpoint]))
            self.done["subscriber came"] += 1
        elif self._guests:
            guest = self._random.choice(self._guests)
            doing = self._random.choice(("stalled", "woke", "killed"))
            self.done[f"subscriber {doing}"] += 1
            if doing == "killed":
                self._guests.remove(guest)
                guest.kill()
                guest.wait()
            else:
                guest.send_signal(signal.SIGSTOP if doing == "stalled" else signal.SIGCONT)

    def _reload(self) -> None:
        """Adds, removes or changes a stream, or makes the new configuration invalid."""
        streams = self._cast.streams
        doing = self._random.choice(("add", "remove", "change", "change", "wrong"))
        if doing == "wrong":
            self._running.reload(self._cast.config() + "  - {id: x, url: }\n", "refused")
        elif doing == "add" and len(streams) < len(self._cast.usual) + 4:
            self._extra = (self._extra + 1) % 8  # names are reused, since a removed stream's counters are kept
            streams[f"extra{self._extra}"] = f"url: '{self._cast.file}', loop: {self._random.choice(('true', 'false'))}"
            self._running.reload(self._cast.config())
        elif doing == "remove" and len(streams) > 2:
            del streams[self._random.choice(list(streams))]
            self._running.reload(self._cast.config())
        else:
            name = self._random.choice(list(streams))
            streams[name] = f"{streams[name].partition(', max_fps')[0]}, max_fps: {self._random.randint(5, 30)}"
            self._running.reload(self._cast.config())
        self.done[f"reload {doing}"] += 1

    def _rest(self) -> None:
        for camera in self._cast.cameras.values():
            camera.set("none")
            camera.cut()  # a new connection has no history, which makes samples comparable
        while self._guests:
            guest = self._guests.pop()
            guest.kill()
            guest.wait()
        if self._cast.streams != self._cast.usual:
            self._cast.streams = dict(self._cast.usual)
            self._running.reload(self._cast.config())

    def close(self) -> None:
        """Ends what this started."""
        for guest in self._guests:
            guest.kill()
            guest.wait()


def end(running: Running) -> int:
    """The daemon's exit code after SIGTERM, or that with which it had ended already; -1 where it does not end."""
    if running.process.poll() is not None:
        return running.process.returncode
    try:
        return running.stop(60)
    except subprocess.TimeoutExpired:
        return -1


def judge(soak: Soak, watch: Watch, keeper: Keeper, running: Running, code: int, warm_up_h: float) -> Report:
    """The report; the daemon has ended with `code`."""
    report = Report(rows([s for s in watch.samples if s.calm and s.hours >= warm_up_h]))
    totals: Counter[str] = Counter()
    for stream, summary in log_summaries(running).items():
        dropped = summary.get("dropped") or {}
        totals.update({"received": summary["received"], "published": summary["published"]})
        totals.update({f"dropped as {reason}": count for reason, count in dropped.items()})
        if summary["received"] != summary["published"] + sum(dropped.values()):
            report.wrong.append(f"{stream}: received {summary['received']} is not published + dropped: {summary}")
    if not totals:
        report.wrong.append("no stream was accounted for at the end")
    counted: Counter[str] = Counter()
    for (name, labels), value in watch.metrics.items():
        if name == "streamd_stream_failures_total":
            counted[dict(labels)["reason"]] += int(value)
        elif name in ("streamd_stream_reconnects_total", "streamd_stream_threads_abandoned_total"):
            counted[name.removeprefix("streamd_stream_").removesuffix("_total")] += int(value)
    actions = sorted(soak.done.items())
    report.facts = [
        ("frames", ", ".join(f"{count} {name}" for name, count in totals.items())),
        ("streams told", ", ".join(f"{count} {name}" for name, count in sorted(counted.items()))),
        ("done to them", ", ".join(f"{count} {name}" for name, count in actions)),
        (
            "the subscriber that always reads",
            f"{keeper.frames} messages, {keeper.untold} frames missing and not reported",
        ),
        ("samples", f"{len(watch.samples)}; received = published + dropped + in flight in all but {len(watch.wrong)}"),
    ]
    if code != 0:
        report.wrong.append(f"the daemon ended with {code}")
    if keeper.untold:
        report.wrong.append(f"{keeper.untold} frames are missing and no message told so")
    if keeper.negative:
        report.wrong.append(f"{keeper.negative} latencies below zero")
    report.wrong += watch.wrong[:10] + soak.late[:10]
    return report


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--minutes", type=int, default=5)
    options.add_argument("--warm-up", type=int, help="minutes that do not count for the slopes; default: a third")
    options.add_argument("--cameras", type=int, default=12, help="RTSP cameras; a quarter as many files play, too")
    options.add_argument("--crowd", action="store_true", help="peers, scrapers, a log that is not read, rotation")
    options.add_argument("--clip", type=Path, action="append", default=[], help="played instead of drawn pictures")
    options.add_argument("--backend", choices=ENGINES, default="null")
    options.add_argument("--model", type=Path)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--json", type=Path, help="every sample")
    args = options.parse_args()
    if args.backend != "null" and args.model is None:
        options.error(f"--backend {args.backend} needs --model")
    warm_up = args.minutes // 3 if args.warm_up is None else args.warm_up
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        endpoint = f"ipc://{folder}/z"
        model = args.model.resolve() if args.model else None
        crowd = Crowd(folder, random.Random(args.seed)) if args.crowd else None
        sinks = f"{{kind: zmq, bind: '{endpoint}', hwm: 500}}" + (f", {crowd.sinks}" if crowd is not None else "")
        head = ENGINES[args.backend].format(model=model) + f"\nsinks: [{sinks}]\n"
        cast = Cast(folder, args.cameras, head, [c.resolve() for c in args.clip], args.seed)
        for camera in cast.cameras.values():
            stack.enter_context(camera)
        metrics, within = ("page: true", crowd.pipe.within) if crowd is not None else ("", ())
        running = stack.enter_context(daemon(folder, cast.config(), metrics=metrics, within=within))
        keeper = Keeper(endpoint)
        watch = Watch(running, keeper, SAMPLE_S)
        soak = Soak(cast, running, watch, keeper, endpoint, args.seed, crowd)
        stack.callback(soak.close)
        stopped = ""
        try:
            for number in range(1, args.minutes + 1):
                soak.minute(number)
                last = watch.samples[-1]
                print(
                    f"minute {number}: RSS {last.rss / 1e6:.1f} MB, {last.fds} fds, {last.threads} threads, "
                    f"p50 {last.p50 or 0:.1f} ms, p99 {last.p99 or 0:.1f} ms, "
                    f"{sum(in_flight(watch.metrics).values()):g} frames in flight",
                    flush=True,
                )  # fmt: skip
        except (AssertionError, OSError, KeyboardInterrupt) as error:
            stopped = f"stopped early: {error or type(error).__name__}"
        watch.close()
        if crowd is not None:
            crowd.rest()
        code = end(running)
        keeper.close()
        if crowd is not None:
            crowd.close()  # what is left of the log
            soak.done += crowd.done
        report = judge(soak, watch, keeper, running, code, warm_up / 60)
        if crowd is not None:
            report.facts.append(("the crowd", crowd.told(watch.metrics)))
            report.wrong += crowd.wrong[:10]
        if stopped:
            report.wrong.append(stopped)
        if args.json:
            write_samples(args.json, watch.samples, report)
        with contextlib.suppress(OSError):
            if not report.good:
                kept = Path(tempfile.gettempdir()) / "soak.log"
                kept.write_bytes((folder / "log").read_bytes())
                report.facts.append(("the daemon's log", str(kept)))
        print(f"\n{report}")
    sys.exit(not report.good)


if __name__ == "__main__":
    main()
