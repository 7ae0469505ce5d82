#!/usr/bin/env python3
"""Measures how long many streams take to open, to recover after all failed at once, and to drain.

    python tools/startup.py --clip CLIP --streams 208 [--rtsp] [--workers 8] [--engine tensorrt --model PLAN]

`streamd run` is started `--times` times with `--streams` paced streams: of the file itself, or with `--rtsp` of fake
cameras (tools/fakecam.py; `--cameras` processes share the streams). With cameras, all of them then disconnect and
refuse connections for `--outage` seconds, as if a switch restarted. At the end the daemon is drained. Times come from
the daemon's own log, which also reports errors."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.behaviour.daemon import Running, daemon

BAD_LINES = (
    "worker died", "killing a hanging worker", "worker did not drain in time", "stage failed",
    "source did not stop in time", "drain timed out; frames in flight are lost",
    "stream did not drain in time",
)  # fmt: skip


@contextmanager
def cameras(clip: str, count: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Fake cameras in processes of their own; their URLs are the first line of each one's output."""
    command = [sys.executable, str(Path(__file__).with_name("fakecam.py")), clip]
    found = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        for _ in range(count)
    ]
    try:
        yield found
    finally:
        for camera in found:
            camera.kill()
            camera.wait()


def say(found: list[subprocess.Popen[str]], fault: str) -> None:
    """Changes the fault of all cameras."""
    for camera in found:
        assert camera.stdin is not None
        camera.stdin.write(fault + "\n")
        camera.stdin.flush()


def configuration(args: argparse.Namespace, urls: list[str]) -> str:
    """One line of YAML a section."""
    engine: dict[str, Any] = {"kind": args.engine}
    if args.mps:
        engine["mps"] = True
    stream: dict[str, Any] = {"loop": not args.rtsp, "isolation": args.isolation}
    if args.decode:
        stream["decode"] = args.decode
    streams = [stream | {"id": f"s{i}", "url": urls[i % len(urls)]} for i in range(args.streams)]
    sections = {
        "model": {"path": args.model}, "engine": engine, "streams": streams, "workers": args.workers,
        "logging": {"level": "info", "format": "json"},
    }  # fmt: skip
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in sections.items())


def _at(line: dict[str, Any]) -> float:
    return datetime.fromisoformat(line["timestamp"].replace("Z", "+00:00")).timestamp()


class Log:
    """The daemon's log so far."""

    def __init__(self, running: Running) -> None:
        self._running = running

    def lives(self, since: float) -> list[float]:
        """When each stream came up for the first time after `since` (unix seconds), sorted."""
        first: dict[str, float] = {}
        for line in self._running.log():
            if line["event"] == "stream live" and _at(line) > since:
                first.setdefault(line["stream"], _at(line))
        return sorted(first.values())

    def wait(self, streams: int, since: float, limit_s: float) -> dict[str, Any]:
        """Waits until all `streams` have come up. Seconds are counted from `since`."""
        deadline = time.time() + limit_s
        while len(times := self.lives(since)) < streams and time.time() < deadline:
            if self._running.process.poll() is not None:
                break
            time.sleep(0.5)
        quarters = [round(times[max(0, len(times) * k // 4 - 1)] - since, 2) for k in (1, 2, 3, 4)] if times else []
        return {"up": len(times), "quarters_s": quarters, "first_s": round(times[0] - since, 2) if times else None}

    def event(self, name: str) -> float | None:
        """Time of the first such line."""
        return next((_at(line) for line in self._running.log() if line["event"] == name), None)

    def trouble(self) -> dict[str, int]:
        """Errors, with their numbers."""
        found: Counter[str] = Counter()
        for line in self._running.log():
            if line["event"] in BAD_LINES:
                found[line["event"]] += 1
            if line["event"] in ("stream backoff", "stream failed"):
                found[f"{line['event']}: {line.get('reason')}"] += 1
        return dict(found)

    def progress(self) -> list[str]:
        """The progress lines."""
        return [
            f"{line['opened']} of {line['of']} at {line['seconds']} s"
            for line in self._running.log()
            if line["event"] == "opening streams"
        ] + [f"all at {line['seconds']} s" for line in self._running.log() if line["event"] == "all streams opened"]


def once(args: argparse.Namespace, cams: list[subprocess.Popen[str]], urls: list[str]) -> dict[str, Any]:
    """One start, one outage if there are cameras, one drain."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        began = time.time()
        with daemon(Path(folder), configuration(args, urls)) as running:
            log = Log(running)
            found["start"] = log.wait(args.streams, began, args.limit)
            if (at := log.event("worker started" if args.workers > 1 else "running")) is not None:
                found["start"]["process_s"] = round(at - began, 2)
            time.sleep(args.rest)
            if cams:
                say(cams, "refuse")
                time.sleep(args.outage)
                back = time.time()
                say(cams, "none")
                found["reconnect"] = log.wait(args.streams, back, args.limit)
                time.sleep(args.rest)
            threads = _threads(running.process.pid)
            began = time.monotonic()
            code = running.stop(60)
            found["drain"] = {"s": round(time.monotonic() - began, 2), "code": code, "threads_before": threads}
            found |= {"trouble": log.trouble(), "progress": log.progress()}
            if args.keep_log:
                args.keep_log.write_bytes((Path(folder) / "log").read_bytes())
    return found


def _threads(pid: int) -> int:
    import psutil

    root = psutil.Process(pid)
    return sum(process.num_threads() for process in [root, *root.children(recursive=True)])


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--clip", required=True)
    p.add_argument("--streams", type=int, default=200)
    p.add_argument("--rtsp", action="store_true")
    p.add_argument("--cameras", type=int, default=4, help="processes of fake cameras (default 4)")
    p.add_argument("--outage", type=float, default=3.0, help="seconds")
    p.add_argument("--workers", type=int, default=1)
    p.add_argument("--engine", default="null")
    p.add_argument("--model", default="none")
    p.add_argument("--mps", action="store_true")
    p.add_argument("--decode", default="", help="of the streams; the default is the daemon's")
    p.add_argument("--isolation", default="thread")
    p.add_argument("--times", type=int, default=1)
    p.add_argument("--rest", type=float, default=3.0, help="seconds of work between two steps")
    p.add_argument("--limit", type=float, default=120.0, help="seconds to wait for the streams")
    p.add_argument("--json", type=Path)
    p.add_argument("--keep-log", type=Path)
    args = p.parse_args()
    results = []
    clip = os.path.abspath(args.clip)
    with cameras(clip, args.cameras if args.rtsp else 0) as cams:
        urls = [c.stdout.readline().strip() for c in cams if c.stdout is not None] or [clip]
        for _ in range(args.times):
            results.append(once(args, cams, urls))
            print(json.dumps(results[-1]), flush=True)
            if args.json:
                args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
