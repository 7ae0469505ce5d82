"""A source against the fake camera: limits, logins, whole pictures, and what takes too long for the matrix."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from fakecam import FakeCamera
from rtp_clip import Clip

from streamd.errors import SourceError
from streamd.sources import no_picture
from streamd.sources.av import AvStreamSettings
from streamd.sources.av_source import AvSource
from tests.conftest import shared
from tests.faults.clips import small


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    return small(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def h265(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    return small(tmp_path_factory.mktemp("clip"), codec="libx265")


def broken(url: str, **settings: Any) -> tuple[SourceError, float, int]:
    """The error that ends the source, after how long, and how many frames came before it."""
    source = AvSource(AvStreamSettings(id="cam", url=url, **({"open_timeout_s": 2, "read_timeout_s": 1} | settings)))
    started, seen = time.monotonic(), 0
    with pytest.raises(SourceError) as caught:
        source.open()
        for _ in source.frames():
            seen += 1
    source.close()
    return caught.value, time.monotonic() - started, seen


def luma(path: Path, count: int) -> list[bytes]:
    import av

    with av.open(str(path)) as container:
        frames = container.decode(video=0)
        return [bytes(next(frames).planes[0]) for _ in range(count)]


@pytest.mark.parametrize("transport", ["tcp", "udp"])
@pytest.mark.parametrize("name", ["rknn_people-walking.mp4", "finite_car.mp4"])
def test_the_pictures_are_those_of_the_clip(name: str, transport: str) -> None:
    """Fragments, aggregates and reordered pictures: bit by bit what the file decodes to, in its order."""
    path = shared(f"videos/{name}")
    with FakeCamera(Clip(path)) as camera:
        source = AvSource(AvStreamSettings(id="cam", url=camera.url, transport=transport))
        source.open()
        frames = source.frames()
        seen = [bytes(next(frames).picture.native.planes[0]) for _ in range(30)]
        source.close()
        frames.close()
    assert seen == luma(path, 30)


@pytest.mark.parametrize("scheme", ["basic", "digest"])
def test_the_right_password_opens(clip: Clip, scheme: str) -> None:
    with FakeCamera(clip, user="admin", password="s3cr3t", scheme=scheme) as camera:
        source = AvSource(AvStreamSettings(id="cam", url=camera.url_as("admin:s3cr3t")))
        assert source.open().codec == "h264"
        source.close()
        for wrong in ("admin:wr0ng", ""):
            error, seconds, _ = broken(camera.url_as(wrong))
            assert (error.reason, error.permanent) == ("auth", False)
            assert seconds < 2
            assert "wr0ng" not in str(error)


@pytest.mark.parametrize("fault", ["mute", "hang:DESCRIBE", "hang:PLAY", "silence:0"])
def test_a_hung_open_is_cut_at_its_limit(clip: Clip, fault: str) -> None:
    with FakeCamera(clip, fault) as camera:
        error, seconds, seen = broken(camera.url, open_timeout_s=1)
    assert (error.reason, seen) == ("timeout_open", 0)
    assert 0.9 < seconds < 6


@pytest.mark.parametrize(
    ("fault", "transport", "reason"),
    [
        ("silence:1", "tcp", "timeout_read"),
        ("silence:1", "udp", "timeout_read"),
        ("rtcp_only:1", "tcp", "rtcp_only"),
        # Over UDP the reports cannot be told from silence.
        ("rtcp_only:1", "udp", "timeout_read"),
    ],
)
def test_a_hung_read_is_cut_at_its_limit(clip: Clip, fault: str, transport: str, reason: str) -> None:
    """Once, not twice: the picture that FFmpeg's parser still holds when time is up is no sign of life."""
    with FakeCamera(clip, fault, report_s=0.2) as camera:
        error, seconds, seen = broken(camera.url, transport=transport)
    assert error.reason == reason
    assert 5 <= seen <= 12
    assert 1.7 < seconds < 8


@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_reports_alone_do_not_open_a_camera(clip: Clip, h265: Clip, codec: str) -> None:
    with FakeCamera(clip if codec == "h264" else h265, "rtcp_only:0", report_s=0.2) as camera:
        error, seconds, seen = broken(camera.url)
    assert (error.reason, seen) == ("rtcp_only", 0)
    assert seconds < 7


def test_no_key_frame(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(no_picture, "NO_KEYFRAME_S", 2.0)
    with FakeCamera(clip, "no_keyframe") as camera:
        error, seconds, seen = broken(camera.url)
    assert (error.reason, error.permanent, seen) == ("no_keyframe", False, 0)
    assert 3 < seconds < 8


@pytest.mark.parametrize("before", ["h264", "h265"])
def test_a_change_of_codec_ends_the_connection(clip: Clip, h265: Clip, before: str) -> None:
    first, second = (clip, h265) if before == "h264" else (h265, clip)
    with FakeCamera(first, "codec:2", alternate=second) as camera:
        error, seconds, seen = broken(camera.url)
        # FFmpeg hands on H.265 as H.264 units that no decoder takes, and swallows H.264 where H.265 was declared.
        assert error.reason in ("corrupt", "rtcp_only", "timeout_read")
        assert seen >= 15
        assert seconds < 8
        source = AvSource(AvStreamSettings(id="cam", url=camera.url))
        assert source.open().codec == {"h264": "hevc", "hevc": "h264"}[first.codec]
        source.close()


def test_a_dripping_camera_cannot_hold_the_read_for_ever(clip: Clip) -> None:
    """Bytes come all the time, a picture never."""
    with FakeCamera(clip, "none", speed=0.05) as camera:
        error, seconds, _ = broken(camera.url)
    assert error.reason in ("rtcp_only", "timeout_read", "timeout_open")
    assert seconds < 8
