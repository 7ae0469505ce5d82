#!/usr/bin/env python3
"""Measures leaks over a thousand reconnects: a camera disconnects repeatedly while the daemon is measured.

    python tools/reconnects.py [--times 1000] [--warm-up 200] [--json out.json]

Exit code 1 if file descriptors or threads leak, or memory grows by 1 kB per reconnect or more.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

from fakecam import FakeCamera
from gauge import Held, held, slope
from rtp_clip import Clip

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from streamd.runtime.heap import TRIM_S
from tests.behaviour.daemon import daemon, until
from tests.clips import write_clip

LIMIT_BYTES = 1000
"""A reconnect."""
PICTURES = 5
"""Between two breaks."""
LOOKS_A_SECOND = 10


def resting(pid: int) -> Held:
    """The resources of a daemon, whose streams run, with the least memory of one period of its heap.

    Between two times that the daemon returns free memory to the system, what was freed still counts: some 16 MB of a
    daemon with one stream. One look says as much of when it came as of what leaked.
    """
    looks = []
    for _ in range(int((TRIM_S + 1) * LOOKS_A_SECOND)):
        time.sleep(1 / LOOKS_A_SECOND)
        looks.append(held(pid))
    return replace(looks[-1], rss=min(look.rss for look in looks))


def measure(folder: Path, times: int, warm_up: int, steps: int = 10) -> list[tuple[int, Held]]:
    """Number of reconnects and the daemon's resources, while connected and idle: `steps` times after the warm-up."""
    clip = Clip(write_clip(folder / "clip.mp4", frames=50, size=(320, 192), options={"tune": "zerolatency"}))
    with FakeCamera(clip, speed=4) as camera:
        stream = f"{{id: cam, url: '{camera.url}', reconnect: {{initial_s: 0.01, max_s: 0.01}}}}"
        config = f'model: {{path: none}}\nengine: {{kind: "null"}}\nstreams: [{stream}]\n'
        with daemon(folder, config) as running:
            pid = running.process.pid

            def count() -> int:
                return int(running.value("streamd_stream_reconnects_total", stream="cam"))

            def rest() -> tuple[int, Held]:
                camera.set("none")
                until(lambda: running.value("streamd_stream_state", stream="cam", state="LIVE") == 1, 20)
                return count(), resting(pid)

            def break_until(number: int) -> None:
                camera.set(f"hangup:{PICTURES}")
                until(lambda: count() >= number, 120)

            break_until(warm_up)
            found = [rest()]
            while found[-1][0] < warm_up + times:
                break_until(found[-1][0] + times // steps)
                found.append(rest())
            assert running.stop() == 0
            summary = running.summary("cam")
            assert summary["received"] == summary["published"] + sum((summary.get("dropped") or {}).values()), summary
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--times", type=int, default=1000)
    options.add_argument("--warm-up", type=int, default=200)
    options.add_argument("--json", type=Path)
    args = options.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), args.times, args.warm_up)
    first, last = found[0], found[-1]
    line = slope([n for n, _ in found], [h.rss for _, h in found])
    print(f"{last[0] - first[0]} reconnects in {time.monotonic() - started:.0f} s, after {first[0]} to warm up")
    for name in ("fds", "threads"):
        print(f"{name:8}{getattr(first[1], name)} -> {getattr(last[1], name)}")
    rise = f"{line.per:.0f} ± {line.error:.0f} bytes a reconnect"
    print(f"RSS     {first[1].rss / 1e6:.2f} -> {last[1].rss / 1e6:.2f} MB: {rise}")
    if args.json:
        args.json.write_text(json.dumps([{"reconnects": n} | asdict(h) for n, h in found]))
    good = line.per < LIMIT_BYTES and last[1].fds <= first[1].fds and last[1].threads <= first[1].threads
    print("good" if good else "BAD")
    sys.exit(not good)


if __name__ == "__main__":
    main()
