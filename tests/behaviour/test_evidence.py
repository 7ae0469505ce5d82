"""Clips of a whole daemon: one process, several, and decoders in processes of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import pytest

from streamd.events.query import Filter, find
from streamd.events.schema import open_reader
from tests import marked
from tests.behaviour.daemon import daemon, until
from tests.events.evidence.stage import ffprobe_errors

ZONE = "zones: [{name: middle, anchor: center, points: [[0.3, 0.3], [0.7, 0.3], [0.7, 0.7], [0.3, 0.7]], %s}]"
CLIP = ZONE % "snapshot: true, clip: {pre_s: 1, post_s: 0.5, max_s: 5}"


def config(*streams: str, more: str = "") -> str:
    listed = "".join(f"  - {{url: v.mp4, loop: true, {stream}}}\n" for stream in streams)
    return f'model: {{path: none}}\nengine: {{kind: "null"}}\nevents: {{state_dir: state}}\n{more}streams:\n{listed}'


def media(folder: Path, stream: str = "a") -> list[dict[str, Any]]:
    """Files of the stream's events, oldest first, by role."""
    connection = open_reader(folder / "state" / "events.db")
    try:
        return [r.media for r in find(connection, Filter(streams=[stream], kinds=["begin"])) if "clip" in r.media]
    finally:
        connection.close()


def written(folder: Path, stream: str = "a") -> list[dict[str, Any]]:
    return [each for each in media(folder, stream) if each["clip"].state == "written"]


def clips(folder: Path, stream: str = "a") -> set[str]:
    return {each["clip"].path for each in written(folder, stream)}


@pytest.mark.parametrize(
    ("more", "stream"),
    [("", ""), ("workers: 2\n", ""), ("", ", isolation: process")],
    ids=["one", "workers", "process"],
)
def test_each_event_has_its_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: str, stream: str) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    marked.write_marked(tmp_path / "v.mp4", frames=75, gop=25)
    text = config(f"id: a, {CLIP}{stream}", f"id: b, {CLIP}{stream}", more=more)
    with daemon(tmp_path, text) as running:
        # A presence ends where the file begins anew. Two share a clip, then it is as long as it may be.
        until(lambda: len(clips(tmp_path, "a")) >= 2 and clips(tmp_path, "b"), 60, "clips")
        until(lambda: running.value("streamd_clips_written_total", stream="a") >= 2)
        assert 0 < running.value("streamd_packet_ring_bytes", stream="a") < 64e6
        up = [value for (name, _), value in running.metrics().items() if name == "streamd_media_up"]
        assert up
        assert set(up) == {1.0}
        assert running.stop() == 0
    first, second, *_ = {each["clip"].path: each for each in written(tmp_path)}.values()
    path = Path(second["clip"].path)
    assert first["clip"].path < second["clip"].path
    assert path.is_relative_to(tmp_path / "state" / "media" / "a")
    told = json.loads(Path(second["clip_json"].path).read_text())
    assert ffprobe_errors(path) == ""
    numbers = [marked.number(image) for _, image in marked.shown(path)]
    assert told["events"][0]["complete"] is True
    assert 1 <= told["events"][0]["t"] < 2.1, "from the key frame at or before one second earlier"
    assert numbers[0] in (0, 25, 50)
    assert numbers == [(numbers[0] + i) % 75 for i in range(len(numbers))]
    assert 100 <= len(numbers) <= 151
    assert told["model"]["name"] == "null"
    assert len(told["config_sha256"]) == 64
    pictures = {round(time_s, 3): marked.number(image) for time_s, image in marked.shown(path)}
    assert {(pictures[round(f["t"], 3)] - f["seq"]) % 75 for f in told["frames"]} == {0}, "each picture is its frame"
    image = cv2.imread(second["snapshot_plain"].path)
    assert image is not None
    assert image.shape == (160, 320, 3)
    assert cv2.imread(second["snapshot"].path) is not None
    assert list((tmp_path / "state").rglob("*.partial")) == []


def test_a_clip_of_a_killed_daemon_has_failed_and_can_be_played(tmp_path: Path) -> None:
    marked.write_marked(tmp_path / "v.mp4", frames=75, gop=5)
    text = config(f"id: a, {ZONE % 'clip: {pre_s: 0, post_s: 5}'}")
    with daemon(tmp_path, text) as running:
        until(lambda: any(p.stat().st_size > 5_000 for p in (tmp_path / "state").rglob("*.mp4.partial")), 60)
        running.process.kill()
        running.process.wait()
    assert list((tmp_path / "state").rglob("*.mp4")) == [], "nothing claims to be whole"
    with daemon(tmp_path, text) as running:
        until(lambda: any(each["clip"].reason == "process_died" for each in media(tmp_path)), 60, "its end")
        assert running.stop() == 0
    dead = next(each["clip"] for each in media(tmp_path) if each["clip"].reason == "process_died")
    assert dead.state == "failed"
    assert dead.path.endswith(".incomplete.mp4")
    assert len(marked.shown(Path(dead.path))) >= 5


def test_clips_need_compressed_video(tmp_path: Path) -> None:
    with daemon(tmp_path, config(f"id: a, {CLIP}").replace("url: v.mp4, loop: true", "kind: synthetic")) as running:
        assert running.process.wait(30) == 2
    assert "zones[0].clip: there is no compressed video to copy" in (tmp_path / "log").read_text()
