"""Many streams at once: all of them open, none is given up, and the end is in time."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from fakecam import FakeCamera
from rtp_clip import Clip

from tests.behaviour.daemon import Running, daemon, until
from tests.clips import write_clip

pytestmark = pytest.mark.timeout(180)

STREAMS = 60


def opened(running: Running) -> int:
    """How often the log has said that all are open."""
    return sum(line["event"] == "all streams opened" for line in running.log())


def check_end(running: Running) -> None:
    began = time.monotonic()
    assert running.stop(30) == 0
    assert time.monotonic() - began < 15  # drain_s is 5; the machine may be busy
    for i in range(STREAMS):
        summary = running.summary(f"s{i}")
        assert summary["received"] == summary["published"] + sum((summary.get("dropped") or {}).values())
    events = {line["event"] for line in running.log()}
    assert not events & {"worker died", "worker hangs and is killed", "stream failed"}
    assert not any(line.get("reason") == "stuck" for line in running.log())


@pytest.mark.parametrize("workers", [1, 3])
def test_files_open_and_end(tmp_path: Path, workers: int) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=20, fps=5, size=(64, 64))
    streams = "".join(f"  - {{id: s{i}, url: {clip}, loop: true}}\n" for i in range(STREAMS))
    config = f'model: {{path: none}}\nengine: {{kind: "null"}}\nworkers: {workers}\nstreams:\n{streams}'
    with daemon(tmp_path, config) as running:
        until(lambda: opened(running), 90)
        [line] = [line for line in running.log() if line["event"] == "all streams opened"]
        assert line["streams"] == STREAMS
        assert "worker" not in line
        check_end(running)
        assert not [line for line in running.log() if line["event"] == "stream backoff"]


def test_cameras_come_back_after_all_were_away(tmp_path: Path) -> None:
    clip = Clip(
        str(write_clip(tmp_path / "clip.mp4", frames=50, fps=10, size=(64, 64), options={"tune": "zerolatency"}))
    )
    with ExitStack() as stack:
        cameras = [stack.enter_context(FakeCamera(clip)) for _ in range(2)]
        streams = "".join(
            f"  - {{id: s{i}, url: '{cameras[i % 2].url}', reconnect: {{initial_s: 0.1, max_s: 1}}}}\n"
            for i in range(STREAMS)
        )
        config = f'model: {{path: none}}\nengine: {{kind: "null"}}\nworkers: 3\nstreams:\n{streams}'
        running = stack.enter_context(daemon(tmp_path, config))
        until(lambda: opened(running), 90)
        for camera in cameras:
            camera.set("refuse")
        time.sleep(2)
        for camera in cameras:
            camera.set("none")
        until(lambda: opened(running) == 2, 90)
        check_end(running)
