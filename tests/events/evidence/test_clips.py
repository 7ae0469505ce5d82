"""Clips by their content: which pictures are in them, and whether the boxes lie on the right ones."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from pathlib import Path
from typing import Any

import av
import pytest

from streamd.errors import SourceError
from streamd.events.evidence import files
from streamd.events.evidence import part as part_module
from streamd.events.evidence.files import Room
from streamd.events.record import Media
from tests import marked
from tests.events.evidence.stage import Stage, ffprobe_errors
from tests.events.journals import until
from tests.rtsp import rtsp_server

CODECS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "h264": ("libx264", "mp4", ".mp4", {"options": {"bf": "2"}}),
    "h264 of Matroska": ("libx264", "mkv", ".mp4", {}),
    "h264 open gop": ("libx264", "ts", ".mp4", {"options": {"bf": "3", "x264-params": "open-gop=1"}}),
    "hevc": ("libx265", "mp4", ".mp4", {"options": {"x265-params": "log-level=none"}}),
    "av1": ("libsvtav1", "mp4", ".mp4", {"options": {"preset": "8", "crf": "20"}}),
    "mpeg4": ("mpeg4", "mp4", ".mp4", {"options": {"bf": "2"}}),
    "mjpeg": ("mjpeg", "avi", ".mp4", {"pix_fmt": "yuvj420p"}),
    "msmpeg4": ("msmpeg4", "avi", ".mkv", {}),
}
"""Encoder, container, ending of the clip, settings."""


def check_content(path: Path, told: dict[str, Any], part: int = 0) -> list[int]:
    """Every box of a part lies on its picture. Returns the numbers of the pictures."""
    pictures = marked.shown(path)
    frames = [f for f in told["frames"] if f["part"] == part]
    assert frames
    for frame in frames:
        time_s, image = min(pictures, key=lambda each: abs(each[0] - frame["t"]))
        assert abs(time_s - frame["t"]) < 0.0011
        left, right = marked.bright(image)
        (x1, _, x2, _, score, label, _track) = frame["boxes"][0]
        assert abs(x1 - left) <= 2
        assert abs(x2 - right) <= 2
        assert (score, label) == (0.9, "person")
    return [marked.number(image) for _, image in pictures]


@pytest.mark.parametrize("kind", CODECS)
def test_a_clip_has_every_picture_from_before_its_event(tmp_path: Path, kind: str) -> None:
    codec, suffix, ending, settings = CODECS[kind]
    video = marked.write_marked(tmp_path / f"v.{suffix}", frames=200, codec=codec, gop=20, **settings)
    stage = Stage(tmp_path / "media")

    def tell(frame: Any, index: int) -> None:
        if index == 95:
            stage.event("begin", frame)
        elif index == 115:
            stage.event("end", frame)

    stage.play(video, tell)
    path, told = stage.clip()
    assert path.suffix == ending
    assert ffprobe_errors(path) == ""
    numbers = check_content(path, told)
    first = numbers[0]
    assert numbers == list(range(first, numbers[-1] + 1)), "no gap, none twice"
    assert 70 - 24 <= first <= 70, "from the key frame at or before one second earlier"
    assert 140 <= numbers[-1] <= 150, "to one second after the end"
    assert told["gaps"] == []
    assert told["events"][0]["complete"] is True
    assert told["cut"] is None
    assert [f["seq"] for f in told["frames"]] == list(range(first, told["frames"][-1]["seq"] + 1))
    assert stage.left_over() == []
    assert stage.media()["clip"] == Media(str(path))


def test_packets_that_no_container_of_a_clip_takes_are_not_recordable(tmp_path: Path) -> None:
    video = marked.write_marked(tmp_path / "v.gif", frames=100, codec="gif", gop=1, pix_fmt="rgb8")
    stage = Stage(tmp_path / "media")

    def tell(frame: Any, index: int) -> None:
        if index in (40, 60):
            stage.event("begin" if index == 40 else "end", frame)

    stage.play(video, tell)
    assert stage.left_over() == []
    told = stage.media()["clip"]
    assert (told.state, told.reason) == ("failed", "not_recordable")


def test_an_event_that_was_decided_late_is_shown_from_its_begin(tmp_path: Path) -> None:
    video = marked.write_marked(tmp_path / "v.mp4", frames=200, gop=10)
    stage = Stage(tmp_path / "media")
    stage.play(video, lambda frame, index: index == 120 and stage.event("instant", frame, back_s=2.0))
    path, told = stage.clip()
    numbers = check_content(path, told)
    assert numbers[0] <= 45
    assert numbers[-1] >= 95
    assert abs(told["events"][0]["t"] - (70 - numbers[0]) / 25) < 0.05


def test_events_that_overlap_share_a_clip_and_others_do_not(tmp_path: Path) -> None:
    video = marked.write_marked(tmp_path / "v.mp4", frames=300, gop=10)
    stage = Stage(tmp_path / "media", ring_s=60)
    steps = {
        60: [("begin", "e1")], 80: [("begin", "e2")], 90: [("end", "e1")], 130: [("end", "e2")],
        220: [("instant", "e3")],
    }  # fmt: skip

    def tell(frame: Any, index: int) -> None:
        for kind, event in steps.get(index, ()):
            stage.event(kind, frame, event)  # type: ignore[arg-type]
        if index == 200:
            stage.settled("e1")

    stage.play(video, tell)
    one, told = stage.clip("e1")
    assert stage.clip("e2")[0] == one
    assert [e["id"] for e in told["events"]] == ["e1", "e2"]
    numbers = check_content(one, told)
    assert numbers[0] <= 35
    assert numbers[-1] >= 155
    other, told = stage.clip("e3")
    assert other != one
    numbers = check_content(other, told)
    assert 185 <= numbers[0] <= 195


def test_an_event_that_is_longer_than_the_longest_clip_is_cut(tmp_path: Path) -> None:
    video = marked.write_marked(tmp_path / "v.mp4", frames=300, gop=10)
    stage = Stage(tmp_path / "media", max_s=5.0)
    stage.play(video, lambda frame, index: index == 50 and stage.event("begin", frame))
    path, told = stage.clip()
    assert told["cut"] == "max_s"
    assert told["events"][0]["ended_at"] is None
    numbers = check_content(path, told)
    assert 125 <= len(numbers) <= 135


def test_a_reconnect_in_the_middle_of_an_event_begins_another_file(tmp_path: Path) -> None:
    video = marked.write_marked(tmp_path / "v.mp4", frames=100, gop=10)
    stage = Stage(tmp_path / "media")
    stage.play(video, lambda frame, index: index == 60 and stage.event("begin", frame))
    stage.play(video, lambda frame, index: index == 30 and stage.event("end", frame))
    path, told = stage.clip()
    files = [path.with_name(part["file"]) for part in told["parts"]]
    assert [f.name for f in files] == [path.name, f"{path.stem}.2.mp4"]
    assert [gap["reason"] for gap in told["gaps"]] == ["reconnect"]
    numbers = check_content(files[0], told, 0)
    assert numbers == list(range(numbers[0], 100))
    assert check_content(files[1], told, 1)[:56] == list(range(56))
    assert {f["epoch"] for f in told["frames"] if f["part"] == 1} == {1}
    assert stage.media()["clip_2"] == Media(str(files[1]))


def test_other_parameters_in_the_middle_of_a_connection_begin_another_file(tmp_path: Path) -> None:
    parts = [
        marked.write_marked(tmp_path / "1.ts", frames=100, gop=10, options={"profile": "main"}),
        marked.write_marked(tmp_path / "2.ts", frames=100, gop=10, options={"profile": "high", "bf": "0"}),
    ]
    (tmp_path / "v.ts").write_bytes(b"".join(p.read_bytes() for p in parts))
    stage = Stage(tmp_path / "media")
    seen = [0]

    def tell(frame: Any, index: int) -> None:
        seen[0] += 1
        if seen[0] == 60:
            stage.event("begin", frame)
        elif seen[0] == 120:
            stage.event("end", frame)

    stage.play(tmp_path / "v.ts", tell)
    path, told = stage.clip()
    assert [gap["reason"] for gap in told["gaps"]] == ["parameters"]
    for number, part in enumerate(told["parts"]):
        file = path.with_name(part["file"])
        assert ffprobe_errors(file) == ""
        check_content(file, told, number)


def test_a_looping_file_goes_on_in_its_clip(tmp_path: Path) -> None:
    video = marked.write_marked(tmp_path / "v.mp4", frames=50, gop=10)
    stage = Stage(tmp_path / "media")
    seen = [0]

    class Enough(Exception):
        pass

    def tell(frame: Any, index: int) -> None:
        seen[0] += 1
        if seen[0] == 40:
            stage.event("begin", frame)
        elif seen[0] == 80:
            stage.event("end", frame)
        elif seen[0] == 140:
            raise Enough

    with pytest.raises(Enough):
        stage.play(video, tell, loop=True)
    path, told = stage.clip()
    assert len(told["parts"]) == 1
    assert ffprobe_errors(path) == ""
    numbers = check_content(path, told)
    assert numbers[0] <= 15
    assert len(numbers) >= 90


class Full(files.NewFile):
    """A disk that is full after some bytes."""

    def write(self, data: bytes) -> int:
        if self.size + len(data) > 3_000:
            self.error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise self.error
        return super().write(data)


def test_a_disk_that_is_full_in_mid_clip_leaves_nothing_and_recovers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = marked.write_marked(tmp_path / "v.mp4", frames=150, gop=10, options={"crf": "5"})
    stage = Stage(tmp_path / "media")
    with monkeypatch.context() as patched:
        patched.setattr(part_module, "NewFile", Full)
        stage.play(video, lambda frame, index: index == 60 and stage.event("instant", frame))
        assert stage.settled()["clip"].state == "failed"
    assert stage.media()["clip"].reason == "disk_full"
    assert [p for p in (tmp_path / "media").rglob("*") if p.is_file()] == []
    assert "disk_full" in stage.writer.problem
    stage.play(video, lambda frame, index: index == 60 and stage.event("instant", frame, "e2"))
    check_content(*stage.clip("e2"))
    assert stage.writer.problem == ""
    assert stage.writer.failed == {("a", "disk_full"): 1}


def test_nothing_is_written_below_the_space_that_is_to_stay_free(tmp_path: Path) -> None:
    video = marked.write_marked(tmp_path / "v.mp4", frames=150, gop=10)
    stage = Stage(tmp_path / "media", min_free=1 << 60)
    stage.play(video, lambda frame, index: index == 60 and stage.event("instant", frame))
    assert stage.settled()["clip"].reason == "disk_full"


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    video = marked.write_marked(tmp_path / "v.mp4", frames=150, gop=10)
    (tmp_path / "media").write_text("a file")
    stage = Stage(tmp_path / "media")
    stage.play(video, lambda frame, index: index == 60 and stage.event("instant", frame))
    assert stage.settled()["clip"].reason == "io_error"


def test_a_folder_that_can_be_written_again_is_found_out_without_another_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamd.events.evidence.files.PROBE_S", 1.0)
    video = marked.write_marked(tmp_path / "v.mp4", frames=60, gop=10)
    (tmp_path / "media").write_text("in the way")
    stage = Stage(tmp_path / "media")
    stage.play(video, lambda frame, index: index == 20 and stage.event("instant", frame))
    assert stage.settled()["clip"].state == "failed"
    assert stage.writer.problem.startswith("io_error: ")
    (tmp_path / "media").unlink()
    stage.writer._room = Room(tmp_path / "media", 1 << 60)
    until(lambda: stage.writer.problem.startswith("disk_full: "), 10)
    time.sleep(2.5)
    assert stage.writer.problem.startswith("disk_full: "), "it stays for as long as it is so"
    stage.writer._room = Room(tmp_path / "media", 0)
    until(lambda: not stage.writer.problem, 10)
    assert list((tmp_path / "media").iterdir()) == [], "nothing is left of it"
    assert stage.writer.written == {}
    assert stage.writer._writability.wait_s is None, "there is nothing more to look for"


def test_the_end_of_the_daemon_ends_the_clip(tmp_path: Path) -> None:
    video = marked.write_marked(tmp_path / "v.mp4", frames=100, gop=10)
    stage = Stage(tmp_path / "media")
    stage.play(video, lambda frame, index: index == 60 and stage.event("begin", frame))
    assert stage.writer.close(20)
    path, told = stage.clip()
    assert told["cut"] == "stopped"
    assert check_content(path, told)[-1] == 99


def test_an_unfinished_clip_does_not_claim_to_be_whole_and_can_be_played(tmp_path: Path) -> None:
    video = marked.write_marked(tmp_path / "v.mp4", frames=300, gop=10, options={"crf": "1"})
    stage = Stage(tmp_path / "media")
    stage.play(video, lambda frame, index: index == 60 and stage.event("begin", frame))
    deadline = time.monotonic() + 20
    while not [p for p in stage.left_over() if p.stat().st_size > 5_000]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert [p for p in (tmp_path / "media").rglob("*") if p.is_file()] == stage.left_over()
    torn = tmp_path / "torn.mp4"
    torn.write_bytes(stage.left_over()[0].read_bytes())
    with av.open(str(torn)) as container:
        assert sum(1 for _ in container.decode(video=0)) > 0
    assert stage.writer.close(20)


SLICES = {"tune": "zerolatency", "x264-params": "sliced-threads=0:slices=4"}
"""GStreamer's payloader repeats the parameters in front of each slice of a key frame."""


def test_a_camera_that_reconnects_in_the_middle_of_an_event(tmp_path: Path) -> None:
    video = marked.write_marked(tmp_path / "v.mp4", frames=250, gop=10, options=SLICES)
    stage = Stage(tmp_path / "media")
    with rtsp_server(f"cam={video}:h264") as server:
        begun: list[int] = []

        def begin(frame: Any, index: int) -> None:
            if index >= 50 and not begun:
                begun.append(index)
                stage.event("begin", frame)
            elif index >= 65:
                server.kill()

        with pytest.raises(SourceError):
            stage.play(server.url("cam"), begin, pace="auto")
        port = server.port

    class Enough(Exception):
        pass

    def end(frame: Any, index: int) -> None:
        if frame.seq == len(stage.frames) - 1 and index >= 20 and len(begun) == 1:
            begun.append(index)
            stage.event("end", frame)
        elif index >= 60:
            raise Enough

    with rtsp_server(f"cam={video}:h264", port=port) as server, pytest.raises(Enough):
        stage.play(server.url("cam"), end, pace="auto")
    path, told = stage.clip()
    files = [path.with_name(part["file"]) for part in told["parts"]]
    assert len(files) == 2
    assert [gap["reason"] for gap in told["gaps"]] == ["reconnect"]
    first, second = map(ffprobe_errors, files)
    # The camera may have gone in the middle of a picture, which is the last packet of the first part then.
    half = {"missing picture in access unit", "no frame!"}
    assert {line.partition("] ")[2].partition(" with size")[0] for line in first.splitlines()} <= half
    assert second == ""
    before, after = check_content(files[0], told, 0), check_content(files[1], told, 1)
    assert before == list(range(before[0], before[-1] + 1))
    assert before[0] <= begun[0] - 25, "from the key frame at or before one second earlier"
    assert before[-1] >= 65
    assert after == list(range(after[0], after[-1] + 1))
    assert after[-1] >= begun[1] + 24, "to one second after the end"
    assert {frame["epoch"] for frame in told["frames"] if frame["part"] == 1} == {1}


@pytest.mark.parametrize(("before", "after"), [("h264", "hevc"), ("hevc", "h264"), ("h264", "mpeg2video")])
def test_a_transport_stream_that_goes_on_with_another_codec_begins_another_file(
    tmp_path: Path, before: str, after: str
) -> None:
    """On the same PID: FFmpeg's demuxer goes on with the stream that it has opened."""
    codecs = {"h264": "libx264", "hevc": "libx265", "mpeg2video": "mpeg2video"}
    pieces = [
        marked.write_marked(tmp_path / f"{i}.ts", frames=100, gop=10, codec=codecs[name], options={"bf": "0"})
        for i, name in enumerate((before, after))
    ]
    video = tmp_path / "v.ts"
    video.write_bytes(b"".join(piece.read_bytes() for piece in pieces))
    stage = Stage(tmp_path / "media", post_s=6.0)
    with contextlib.suppress(SourceError):
        stage.play(video, lambda frame, index: index == 60 and stage.event("instant", frame))
    first, told = stage.clip()
    assert [part["codec"] for part in told["parts"]] == [before, after]
    assert [gap["reason"] for gap in told["gaps"]] == ["parameters"]
    old, new = (first.with_name(part["file"]) for part in told["parts"])
    assert ffprobe_errors(new) == ""
    for path, part in zip((old, new), told["parts"], strict=True):
        pictures = marked.shown(path)
        assert (part["height"], part["width"]) == pictures[0][1].shape
    # FFmpeg loses up to two pictures where it changes the parser.
    assert set(range(35, 97)) <= {marked.number(picture) for _, picture in marked.shown(old)}
    assert [marked.number(picture) for _, picture in marked.shown(new)] == list(range(100))
