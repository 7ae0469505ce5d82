"""What befalls clips: a full disk, one that turns read-only, a worker that is killed, a clock that is stepped.

None of it is pretended: the disks are a small tmpfs and an ext4 image in a mount namespace of the daemon's own.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from streamd.events.query import Filter, find
from streamd.events.schema import open_reader
from tests import marked
from tests.behaviour.daemon import Running, daemon, until
from tests.behaviour.test_evidence import ZONE, clips, config, media, written
from tests.behaviour.test_hardship import namespace
from tests.behaviour.wallclock import WallClock
from tests.conftest import program
from tests.events.evidence.stage import ffprobe_errors

pytestmark = pytest.mark.slow
CLIP = ZONE % "snapshot: true, clip: {pre_s: 0.5, post_s: 0.5, max_s: 5}"
MEDIA = "media: {folder: '%s', min_free_gb: 0}\n"


def mounted(folder: Path, mount: str) -> list[str]:
    """The command that runs another one with a disk of its own at `folder`."""
    folder.mkdir()
    return [*namespace("--mount"), "sh", "-c", f'mount {mount} "$0" && exec "$@"', str(folder)]


def failed(folder: Path, reason: str, stream: str = "a") -> list[dict[str, Any]]:
    return [each for each in media(folder, stream) if each["clip"].reason == reason]


def under_way(disk: Path) -> bool:
    return any(p.stat().st_size > 5_000 for p in disk.rglob("*.mp4.partial"))


def told(running: Running) -> str:
    status, body = running.get("/healthz")
    assert status == 200, "detection goes on"
    return str(json.loads(body).get("media", ""))


def up(running: Running) -> bool:
    return all(value for (name, _), value in running.metrics().items() if name == "streamd_media_up")


def published(running: Running, stream: str = "a") -> float:
    return running.value("streamd_frames_published_total", stream=stream)


def whole(disk: Path) -> None:
    """Every file that claims to be whole is."""
    files = [p for p in disk.rglob("*.mp4") if ".incomplete" not in p.name]
    assert files
    for path in files:
        assert ffprobe_errors(path) == ""


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(4096))


def test_a_full_disk_and_a_killed_worker_cost_clips_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    marked.write_marked(tmp_path / "v.mp4", frames=75, gop=5)
    disk = tmp_path / "disk"
    within = mounted(disk, "-t tmpfs -o size=2m none")
    text = config(f"id: a, {CLIP}", "id: b", more="workers: 2\n" + MEDIA % disk)
    with daemon(tmp_path, text, within=within) as running:
        inside = Path(f"/proc/{running.process.pid}/root{disk}")
        until(lambda: written(tmp_path) and under_way(inside), 60, "a clip, and another one under way")
        fill(inside / "filler")
        until(lambda: failed(tmp_path, "disk_full"), 60, "the clip fails")
        until(lambda: "worker 0: disk_full" in told(running) and not up(running), 30, "it is told")
        seen = published(running)
        until(lambda: published(running) > seen + 20, 30)
        assert running.value("streamd_clips_failed_total", stream="a", reason="disk_full") >= 1
        before = len(written(tmp_path))
        (inside / "filler").unlink()
        until(lambda: len(written(tmp_path)) > before and not told(running) and up(running), 60, "it recovers")
        # The worker that writes is killed.
        until(lambda: under_way(inside), 60)
        first = {line["worker"]: line["pid"] for line in running.log() if line["event"] == "worker started"}
        os.kill(first[0], signal.SIGKILL)
        until(lambda: failed(tmp_path, "worker_died"), 60, "the dead worker's clip is settled")
        before = len(written(tmp_path))
        until(lambda: len(written(tmp_path)) > before, 60, "its successor records")
        dead = failed(tmp_path, "worker_died")[0]["clip"]
        assert dead.state == "failed"
        assert dead.path.endswith(".incomplete.mp4")
        assert len(marked.shown(inside / Path(dead.path).relative_to(disk))) >= 5
        whole(inside)
        assert running.stop(30) == 0
    assert "worker_died" not in running.summary("b").get("dropped", {})


def test_a_disk_that_turns_read_only_costs_clips_and_nothing_else(tmp_path: Path) -> None:
    """As ext4 does after an error of the disk, while a clip is being written."""
    image, disk = tmp_path / "image", tmp_path / "disk"
    if os.geteuid() != 0:
        pytest.skip("only root can mount an image")
    with image.open("wb") as out:
        out.truncate(16 << 20)
    subprocess.run([program("mkfs.ext4", "e2fsprogs"), "-q", "-O", "^has_journal", str(image)], check=True)
    mount = f"-o loop,errors=remount-ro '{image}'"
    trial = [*mounted(disk, mount), "findmnt", "-no", "SOURCE", str(disk)]
    if subprocess.run(trial, capture_output=True, check=False).returncode:
        pytest.skip("no loop device can be mounted here")
    disk.rmdir()
    marked.write_marked(tmp_path / "v.mp4", frames=75, gop=5)
    text = config(f"id: a, {CLIP}", more=MEDIA % disk)
    with daemon(tmp_path, text, within=mounted(disk, mount)) as running:
        inside = Path(f"/proc/{running.process.pid}/root{disk}")
        enter = ["nsenter", "--target", str(running.process.pid), "--mount", "--"]
        until(lambda: written(tmp_path) and under_way(inside), 60, "a clip, and another one under way")
        found = subprocess.run(
            [*enter, "findmnt", "-no", "SOURCE", str(disk)], capture_output=True, text=True, check=True
        )
        device = found.stdout.strip().rpartition("/")[2]
        Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("1")
        until(lambda: failed(tmp_path, "read_only"), 60, "the clip fails")
        until(lambda: "read_only" in told(running) and not up(running), 30, "it is told")
        seen = published(running)
        until(lambda: published(running) > seen + 20, 30)
        before = len(clips(tmp_path))
        subprocess.run([*enter, "umount", "--lazy", str(disk)], check=True)
        subprocess.run([*enter, "e2fsck", "-fy", str(image)], check=False, capture_output=True)
        subprocess.run([*enter, "mount", "-o", "loop", str(image), str(disk)], check=True)
        until(lambda: len(clips(tmp_path)) > before and not told(running) and up(running), 60, "it recovers")
        newest = sorted(clips(tmp_path))[-1]
        assert ffprobe_errors(inside / Path(newest).relative_to(disk)) == ""
        assert running.stop() == 0


def test_a_stepped_clock_costs_no_clip(tmp_path: Path) -> None:
    """By an hour, forward and back, while clips are being written, with a retention of a quarter of an hour."""
    clock = WallClock(tmp_path, stat=False)
    marked.write_marked(tmp_path / "v.mp4", frames=75, gop=5)
    text = config(f"id: a, {CLIP}", more="media: {keep_days: 0.01, min_free_gb: 0}\n")
    state = tmp_path / "state"
    with daemon(tmp_path, text, within=clock.command) as running:
        for seconds in (3600, -3600, 0):
            until(lambda: under_way(state), 60, "a clip is under way")
            before = len(clips(tmp_path))
            clock.step(seconds)
            until(lambda: len(clips(tmp_path)) >= before + 2, 60, "it is written, and one after it")  # noqa: B023
        assert running.stop() == 0
    assert list(state.rglob("*.partial")) == []
    found = written(tmp_path)
    assert len(found) == len(media(tmp_path)), "none has failed, none was removed"
    for each in found:
        beside = json.loads(Path(each["clip_json"].path).read_text())
        pictures = marked.shown(Path(each["clip"].path))
        numbers = [marked.number(image) for _, image in pictures]
        assert numbers == [(numbers[0] + i) % 75 for i in range(len(numbers))], "no picture is missing"
        assert max(time_s for time_s, _ in pictures) < 5.25, "the file's time knows nothing of the step"
        assert len(beside["parts"]) == 1
        assert beside["gaps"] == []
    connection = open_reader(state / "events.db")
    try:
        records = find(connection, Filter(streams=["a"], kinds=["begin", "end"]))
    finally:
        connection.close()
    kinds = [(record.id, record.kind) for record in records]
    assert {id_ for id_, kind in kinds if kind == "begin"} == {id_ for id_, kind in kinds if kind == "end"}
    assert len(kinds) == len(set(kinds))


def test_deleted_events_leave_nothing(tmp_path: Path) -> None:
    """Rows, clips, snapshots, and what a receiver that is down was still to be sent; then recording goes on."""
    marked.write_marked(tmp_path / "v.mp4", frames=75, gop=5)
    sink = "sinks: [{kind: webhook, url: 'http://127.0.0.1:9/'}]\n"
    state = tmp_path / "state"
    with daemon(tmp_path, config(f"id: a, {CLIP}", more=sink)) as running:
        until(lambda: len(clips(tmp_path)) >= 2 and under_way(state), 60, "clips, and another one under way")
        until(lambda: running.value("streamd_sink_events_queued", sink="webhook0") >= 3)
        gone = [Path(m.path) for each in written(tmp_path) for m in each.values()]
        assert {path.suffix for path in gone} == {".mp4", ".json", ".jpg"}
        begun = {each["clip"].path for each in media(tmp_path) if each["clip"].state == "pending"}
        assert begun
        ask = ["delete", str(state), "--all-streams", "--since", "1h", "--until", "0s"]
        done = subprocess.run(
            [sys.executable, "-m", "streamd", "events", *ask], capture_output=True, text=True, timeout=60, check=True
        )
        assert done.stdout.startswith("deleted ")
        until(lambda: not any(path.exists() for path in gone), 30, "its files are gone")
        # The clip under way was not touched; it is not kept once it is complete.
        count = {"sink": "webhook0", "outcome": "deleted"}
        until(lambda: running.value("streamd_sink_events_settled_total", **count) >= 3, 30, "deliveries are gone, too")
        until(lambda: len(clips(tmp_path)) >= 2, 60, "later events have theirs")
        assert running.stop() == 0
    linked = {m.path for each in media(tmp_path) for m in each.values() if m.state == "written"}
    assert not linked & {str(path) for path in gone}
    assert not linked & begun
    assert {str(path) for path in (state / "media").rglob("*") if path.is_file()} == linked
