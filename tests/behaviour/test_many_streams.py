"""Many streams at once: all of them open, none is given up, and the end is in time."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

import pytest
from fakecam import FakeCamera
from rtp_clip import Clip

from tests.behaviour.daemon import Running, daemon, until
from tests.clips import write_clip
from tests.conftest import ROOT

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


def test_decoders_of_cameras_are_created_one_after_the_other_without_a_pause(tmp_path: Path) -> None:
    """With a stand-in for the driver, which creates one decoder at a time on the whole machine."""
    # A key frame every four seconds: a camera that needed one for its turn would come up to four seconds later.
    clip = Clip(
        write_clip(tmp_path / "clip.mp4", frames=200, fps=25, gop=100, size=(64, 64), options={"tune": "zerolatency"})
    )
    log, count, create_s = tmp_path / "created", 24, 0.1
    path = os.pathsep.join(filter(None, [str(ROOT / "tests" / "nvdec_double"), os.environ.get("PYTHONPATH")]))
    within = ["env", f"PYTHONPATH={path}", f"STREAMD_CREATE_S={create_s}", f"STREAMD_CREATE_LOG={log}"]
    with FakeCamera(clip) as camera:
        streams = "".join(f"  - {{id: s{i}, url: '{camera.url}', decode: nvdec}}\n" for i in range(count))
        config = f'model: {{path: none}}\nengine: {{kind: "null"}}\nworkers: 3\nstreams:\n{streams}'
        with daemon(tmp_path, config, within=within) as running:
            until(lambda: opened(running), 60)
            assert running.stop(30) == 0
            lives = [line for line in running.log() if line["event"] == "stream live"]
            assert {line["stream"] for line in lives} == {f"s{i}" for i in range(count)}
            assert not [line for line in running.log() if line["event"] == "stream backoff"]
    times = [tuple(map(float, line.split())) for line in log.read_text().splitlines()]
    assert len(times) == count
    work = sum(end - began for began, end in times)
    assert times[-1][1] - times[0][0] < 1.2 * work
    # And each is up when its decoder is: not at its next key frame.
    stamps = [datetime.fromisoformat(line["timestamp"].replace("Z", "+00:00")).timestamp() for line in lives]
    assert max(stamps) - min(stamps) < 1.2 * work
