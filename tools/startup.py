#!/usr/bin/env python3
"""Measures how long many streams take to open, to recover after all failed at once, and to drain.

    python tools/startup.py --clip CLIP --streams 208 [--rtsp] [--workers 8] [--engine tensorrt --model PLAN]

`streamd run` is started `--times` times with `--streams` paced streams: of the file itself, or with `--rtsp` of fake
cameras (tools/fakecam.py; `--cameras` processes share the streams). With cameras, all of them then disconnect and
refuse connections for `--outage` seconds, as if a switch restarted. At the end the daemon is drained. Times come from
the daemon's own log, which also reports errors. During a `--rest` of 20 s or more, memory and what is served are
sampled: slopes are MiB a minute and their standard error.

Without a GPU, `--create-ms 55` has a stand-in for the driver (tests/nvdec_double): decoding is done in software, and
the creation of a decoder holds a lock of the whole machine for this long."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from startup_rest import rest

from tests.behaviour.daemon import Running, daemon

LEAST_REST_S = 20.0
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
    decode = args.decode or ("nvdec" if args.create_ms else "")
    if decode:
        stream["decode"] = decode
    streams = [stream | {"id": f"s{i}", "url": urls[i % len(urls)]} for i in range(args.streams)]
    sections = {
        "model": {"path": args.model}, "engine": engine, "streams": streams, "workers": args.workers,
        "logging": {"level": "debug", "format": "json"},
    }  # fmt: skip
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in sections.items())


def _at(line: dict[str, Any]) -> float:
    return datetime.fromisoformat(line["timestamp"].replace("Z", "+00:00")).timestamp()


def _course(values: Iterable[float]) -> list[float]:
    """Median, ninth decile, largest."""
    found = sorted(values)
    return [found[int(share * (len(found) - 1))] for share in (0.5, 0.9, 1)] if found else []


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

    def failures(self, since: float) -> dict[str, int]:
        """Failed attempts after `since`, by reason."""
        found: Counter[str] = Counter()
        for line in self._running.log():
            if line["event"] == "stream backoff" and _at(line) > since:
                found[str(line.get("reason"))] += 1
        return dict(found)

    def decoders(self, since: float) -> dict[str, Any]:
        """How decoders were created after `since`. Each list is the median, the ninth decile and the largest."""
        lines = [line for line in self._running.log() if line["event"] == "decoder created" and _at(line) > since]
        if not lines:
            return {"created": 0}
        ends = [_at(line) for line in lines]
        span = max(ends) - min(end - line["create_s"] for end, line in zip(ends, lines, strict=True))
        found: dict[str, Any] = {
            "created": len(lines),
            "first_s": round(min(ends) - since, 2),
            "span_s": round(span, 2),
        }
        found["at_a_time"] = round(sum(line["create_s"] for line in lines) / span, 2) if span else None
        for name in ("queued_s", "connect_s", "waited_s", "create_s"):
            found[name] = _course(line[name] for line in lines)
        found["then_live_s"] = _course(self._then_live(lines))
        return found

    def _then_live(self, created: list[dict[str, Any]]) -> Iterator[float]:
        """Seconds from a decoder to the first picture that is served."""
        lives: dict[str, list[float]] = {}
        for line in self._running.log():
            if line["event"] == "stream live":
                lives.setdefault(line["stream"], []).append(_at(line))
        for line in created:
            # The line is written after the picture if decoding gives it at once.
            later = [at - _at(line) for at in lives.get(line["stream"], ()) if at > _at(line) - 0.1]
            if later:
                yield round(max(0.0, later[0]), 3)

    def slowest(self, since: float, count: int = 3) -> list[str]:
        """What happened to the streams that came up last after `since`, with seconds from then."""
        up: dict[str, float] = {}
        of: dict[str, list[str]] = {}
        for line in self._running.log():
            stream, at = line.get("stream"), _at(line)
            if stream is None or at <= since or stream in up:
                continue
            if line["event"] == "stream live":
                up[stream] = at
            of.setdefault(stream, []).append(f"{at - since:.2f} {line['event']} {line.get('reason', '')}".strip())
        return [f"{stream}: {'; '.join(of[stream])}" for stream in sorted(up, key=lambda s: -up[s])[:count]]

    def event(self, name: str) -> float | None:
        """Time of the first such line."""
        return next((_at(line) for line in self._running.log() if line["event"] == name), None)

    def running(self, since: float) -> list[float]:
        """When the first and the last worker (or the daemon) ran, seconds from `since`."""
        found = [_at(line) - since for line in self._running.log() if line["event"] == "running" and "worker" in line]
        found = found or [_at(line) - since for line in self._running.log() if line["event"] == "running"]
        return [round(min(found), 2), round(max(found), 2)] if found else []

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


def within(create_ms: float, created: Path, memory: Path | None) -> list[str]:
    """The command within which a daemon is measured: `env` with what its Python processes import at their start.

    Args:
        create_ms: how long a stand-in for NVDEC's driver takes for each decoder; 0 for none.
        created: where that writes when it created them.
        memory: a new folder, to which all processes write what memory they have in use; None if they need not.
    """
    tools = Path(__file__).resolve().parent
    hooks, found = [], []
    if create_ms:
        hooks.append(tools.parent / "tests" / "nvdec_double")
        found += [f"STREAMD_CREATE_S={create_ms / 1e3}", f"STREAMD_CREATE_LOG={created}"]
    if memory is not None:
        memory.mkdir()
        hooks += [tools / "memory_in_use", tools]
        found.append(f"STREAMD_MEMORY_LOG={memory}")
    path = os.pathsep.join([*map(str, hooks), *filter(None, [os.environ.get("PYTHONPATH")])])
    return ["env", f"PYTHONPATH={path}", *found] if hooks else []


def rested(running: Running, seconds: float, memory_log: Path | None) -> dict[str, Any] | None:
    """Waits; a report if that is long enough for one."""
    if seconds >= LEAST_REST_S:
        return rest(running, seconds, memory_log=memory_log)
    time.sleep(seconds)
    return None


def once(args: argparse.Namespace, cams: list[subprocess.Popen[str]], urls: list[str]) -> dict[str, Any]:
    """One start, one outage if there are cameras, one drain."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        began = time.time()
        created = Path(folder) / "created"
        memory = Path(folder) / "memory" if args.in_use else None
        hooks = within(args.create_ms, created, memory)
        with daemon(Path(folder), configuration(args, urls), within=hooks) as running:
            log = Log(running)
            found["start"] = log.wait(args.streams, began, args.limit)
            if (at := log.event("worker started" if args.workers > 1 else "running")) is not None:
                found["start"]["process_s"] = round(at - began, 2)
            found["start"] |= {"running_s": log.running(began), "decoders": log.decoders(began)}
            found["start"]["slowest"] = log.slowest(began)
            found["rest"] = rested(running, args.rest, memory)
            if cams:
                away = time.time()
                say(cams, "refuse")
                time.sleep(args.outage)
                back = time.time()
                say(cams, "none")
                found["reconnect"] = log.wait(args.streams, back, args.limit)
                found["reconnect"] |= {"failures": log.failures(back), "decoders": log.decoders(away)}
                found["reconnect"]["slowest"] = log.slowest(back)
                found["rest_after"] = rested(running, args.rest_after, memory)
            threads = _threads(running.process.pid)
            began = time.monotonic()
            code = running.stop(60)
            found["drain"] = {"s": round(time.monotonic() - began, 2), "code": code, "threads_before": threads}
            found |= {"trouble": log.trouble(), "progress": log.progress()}
            if created.exists():
                found["start"]["driver"] = driver(created)
            if args.keep_log:
                args.keep_log.write_bytes((Path(folder) / "log").read_bytes())
    return found


def driver(created: Path) -> dict[str, float]:
    """What the stand-in says: its decoders, seconds of work, and from the first creation to the last."""
    times = [tuple(map(float, line.split())) for line in created.read_text().splitlines()]
    work = sum(end - begin for begin, end in times)
    return {"decoders": len(times), "work_s": round(work, 2), "span_s": round(times[-1][1] - times[0][0], 2)}


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
    p.add_argument("--create-ms", type=float, default=0.0, help="milliseconds; see above")
    p.add_argument("--isolation", default="thread")
    p.add_argument("--times", type=int, default=1)
    p.add_argument("--rest", type=float, default=3.0, help="seconds of work before the outage")
    p.add_argument(
        "--in-use", action="store_true",
        help="with --rest: also what malloc and Python have given out, without huge pages",
    )  # fmt: skip
    p.add_argument("--rest-after", type=float, default=3.0, help="seconds of work after it")
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
