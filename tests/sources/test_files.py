"""Where a file begins."""

from __future__ import annotations

import time
from pathlib import Path

import av
import pytest

from streamd.errors import SourceError
from streamd.sources.av import AvStreamSettings
from streamd.sources.av_source import AvSource
from streamd.sources.files import reordering_s
from streamd.types import Frame
from tests.clips import write_clip

SECOND = 10**9


def settings(path: Path, start_s: float, **more: object) -> AvStreamSettings:
    return AvStreamSettings.model_validate({"id": "s", "url": str(path), "start_s": start_s, "pace": "asap"} | more)


def play(given: AvStreamSettings, most: int = 1000) -> list[Frame]:
    source, found = AvSource(given), []
    source.open()
    for frame in source.frames():
        found.append(frame)
        if len(found) == most:
            break
    source.close()
    return found


def stamps(path: Path) -> list[int]:
    with av.open(str(path)) as container:
        return [round(frame.time * SECOND) for frame in container.decode(video=0)]


@pytest.mark.parametrize("options", [{}, {"bf": "3", "b_strategy": "0"}], ids=["plain", "b-frames"])
@pytest.mark.parametrize("name", ["c.mp4", "c.mkv", "c.ts", "c.avi"])
def test_the_first_frame_is_the_one_asked_for(tmp_path: Path, name: str, options: dict[str, str]) -> None:
    clip = write_clip(tmp_path / name, frames=100, gop=30, codec="mpeg4" if name == "c.avi" else "libx264",
                      options={} if name == "c.avi" else options)  # fmt: skip
    every = stamps(clip)
    found = play(settings(clip, 2.0))
    wanted = [stamp for stamp in every if stamp >= every[0] + 2 * SECOND]
    assert len(wanted) == 50
    assert abs(len(found) - 50) <= 1, "a container's beginning may be that of its first packet"


def test_a_repeat_plays_the_whole(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "c.mp4", frames=50, gop=10)
    found = [frame.pts_ns for frame in play(settings(clip, 1.0, loop=True), 60)]
    assert found[0] == SECOND
    assert found[25] == 0
    assert len(found) == 60


def test_what_leads_up_to_it_is_not_waited_for(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "c.mp4", frames=100, gop=100)  # one key frame: three seconds lead up to it
    begun = time.monotonic()
    found = play(settings(clip, 3.0, pace="realtime"), 3)
    assert time.monotonic() - begun < 2
    assert found[0].pts_ns == 3 * SECOND


def test_a_clip_that_is_over_before(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "c.mp4", frames=50)
    with pytest.raises(SourceError, match=r"start_s is 7.5, but the clip ends after 2 s; choose an earlier") as caught:
        play(settings(clip, 7.5))
    assert caught.value.permanent
    raw = write_clip(tmp_path / "c.h264", frames=50)  # tells no length
    with pytest.raises(SourceError, match=r"start_s is 7.5, but the clip ends before"):
        play(settings(raw, 7.5))


def test_a_stream_without_an_index_is_entered_early_enough(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "c.ts", frames=500, gop=100)
    every = stamps(clip)
    found = [frame.pts_ns for frame in play(settings(clip, 15.0))]
    assert found == [stamp for stamp in every if stamp >= every[0] + 15 * SECOND]


def test_how_long_a_clip_s_b_frames_wait(tmp_path: Path) -> None:
    plain = write_clip(tmp_path / "plain.mp4", frames=40, options={"bf": "0"})
    assert reordering_s(str(plain)) == (0, 0)
    # I P B b …: with one B-frame between two others, a P-frame waits for two frames, of which one is the B-frame's.
    one = write_clip(tmp_path / "one.mp4", frames=40, options={"bf": "1", "b-adapt": "0", "sc_threshold": "0"})
    mean, most = reordering_s(str(one))
    assert most == pytest.approx(0.08)
    assert 0.03 < mean < 0.05
    assert reordering_s(str(tmp_path / "none.mp4")) == (0, 0)
    (tmp_path / "no.mp4").write_text("x")
    assert reordering_s(str(tmp_path / "no.mp4")) == (0, 0)
