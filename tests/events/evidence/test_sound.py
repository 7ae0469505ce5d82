"""Sound in clips: where it is asked for only, and where it belongs beside the pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import pytest

from streamd.sources.av import AvStreamSettings
from tests import marked
from tests.events.evidence.stage import Stage, ffprobe_errors
from tests.rtsp import rtsp_server

BEEP = 95


def at_beep(stage: Stage, frame: Any, index: int) -> None:
    if index == BEEP and not stage.links:
        stage.event("instant", frame)


def beep_off_s(path: Path) -> float:
    """How much later the tone is heard than its picture is seen."""
    seen = next(time_s for time_s, image in marked.shown(path) if marked.number(image) == BEEP)
    return marked.heard_from(path) - seen


def has_sound(path: Path) -> bool:
    with av.open(str(path)) as container:
        return bool(container.streams.audio)


@pytest.mark.parametrize(
    ("sound", "suffix", "ending", "name", "isolation"),
    [
        ("aac", "mp4", ".mp4", "aac", "process"),
        ("aac", "ts", ".mp4", "aac", "thread"),  # with a header in each packet
        ("libopus", "mkv", ".mp4", "opus", "thread"),
        ("pcm_alaw", "mov", ".mov", "pcm_alaw", "thread"),  # what most cameras have, and MP4 lacks
    ],
    ids=["aac, own process", "adts", "opus", "alaw"],
)
def test_the_sound_lies_where_it_belongs(
    tmp_path: Path, sound: str, suffix: str, ending: str, name: str, isolation: str
) -> None:
    video = marked.write_heard(tmp_path / f"v.{suffix}", frames=200, beep=BEEP, sound=sound)
    stage = Stage(tmp_path / "media", audio=True)
    stage.play(video, lambda frame, index: at_beep(stage, frame, index), isolation=isolation)
    path, told = stage.clip()
    assert path.suffix == ending
    assert [part["audio"] for part in told["parts"]] == [name]
    assert ffprobe_errors(path) == ""
    assert abs(beep_off_s(path)) < 0.03
    with av.open(str(path)) as container:
        stamps = [p.pts * p.time_base for p in container.demux(audio=0) if p.pts is not None and p.time_base]
    assert stamps[0] < 0.5, "from the beginning"
    assert stamps[-1] > 1.5, "to the end"


def test_sound_is_not_recorded_unless_its_rule_asks_for_it(tmp_path: Path) -> None:
    video = marked.write_heard(tmp_path / "v.mp4", frames=200, beep=BEEP)
    stage = Stage(tmp_path / "media", audio=True)
    quiet = stage.wanted._replace(audio=False)

    def tell(frame: Any, index: int) -> None:
        if index == BEEP:
            stage.event("instant", frame)
            stage.wanted = quiet
            stage.event("instant", frame, "e2")

    stage.play(video, tell)
    loud, silent = stage.clip("e1")[0], stage.clip("e2")[0]
    assert loud != silent, "a clip with sound is not shared with a rule that did not ask for it"
    assert has_sound(loud)
    assert not has_sound(silent)
    nobody = Stage(tmp_path / "other")
    nobody.play(video, lambda frame, index: at_beep(nobody, frame, index))
    assert not has_sound(nobody.clip()[0])
    assert not any(packet.sound for packet in nobody.source.ring.since(0)), "nothing is even kept"


def test_a_loop_keeps_sound_and_pictures_together(tmp_path: Path) -> None:
    video = marked.write_heard(tmp_path / "v.mp4", frames=120, beep=BEEP)
    stage = Stage(tmp_path / "media", audio=True, pre_s=3.0, post_s=5.0)

    class Enough(Exception):
        pass

    def tell(frame: Any, index: int) -> None:
        if len(stage.frames) == 125:
            stage.event("instant", frame)
        elif len(stage.frames) == 300:
            raise Enough

    with pytest.raises(Enough):
        stage.play(video, tell, loop=True)
    path, _ = stage.clip()
    assert ffprobe_errors(path) == ""
    assert abs(beep_off_s(path)) < 0.03


def test_a_stream_without_sound_has_clips_without(tmp_path: Path) -> None:
    video = marked.write_marked(tmp_path / "v.mp4", frames=150, gop=10)
    stage = Stage(tmp_path / "media", audio=True)
    stage.play(video, lambda frame, index: at_beep(stage, frame, index))
    path, told = stage.clip()
    assert [part["audio"] for part in told["parts"]] == [None]
    assert not has_sound(path)


def test_asking_for_sound_needs_a_new_connection() -> None:
    def settings(**clip: Any) -> AvStreamSettings:
        zone = {"name": "gate", "points": [(0, 0), (1, 0), (1, 1)], "clip": clip}
        return AvStreamSettings.model_validate({"id": "a", "url": "rtsp://h/s", "zones": [zone]})

    assert settings().connects_as(settings(pre_s=2))
    assert not settings().connects_as(settings(audio=True))
    assert not settings(audio=True).connects_as(settings())


def test_a_camera_s_sound(tmp_path: Path) -> None:
    video = marked.write_heard(tmp_path / "v.mp4", frames=200, beep=BEEP)
    stage = Stage(tmp_path / "media", audio=True)

    class Enough(Exception):
        pass

    def tell(frame: Any, index: int) -> None:
        at_beep(stage, frame, index)
        if index >= BEEP + 40:
            raise Enough

    with rtsp_server(f"cam={video}:h264+aac") as server, pytest.raises(Enough):
        stage.play(server.url("cam"), tell, pace="auto")
    path, told = stage.clip()
    assert [part["audio"] for part in told["parts"]] == ["aac"]
    assert ffprobe_errors(path) == ""
    assert abs(beep_off_s(path)) < 0.1
