"""Cameras: GStreamer's RTSP server, H.264 and H.265, over TCP and UDP."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamd.errors import SourceError
from streamd.sources.av import AvStreamSettings
from streamd.sources.av_source import AvSource
from tests.clips import write_clip
from tests.conftest import shared
from tests.rtsp import Server, rtsp_server


@pytest.fixture(scope="module")
def camera() -> Iterator[Server]:
    h264, h265 = shared("videos/rknn_people-walking.mp4"), shared("videos/finite_car.mp4")
    with rtsp_server(f"h264={h264}:h264", f"h265={h265}:h265") as server:
        yield server


def opened(url: str, **settings: Any) -> tuple[AvSource, Any]:
    source = AvSource(AvStreamSettings(id="cam", url=url, **settings))
    return source, source.open()


@pytest.mark.parametrize("transport", ["tcp", "udp", "auto"])
@pytest.mark.parametrize(("mount", "codec", "size"), [("h264", "h264", (1280, 720)), ("h265", "hevc", (960, 544))])
def test_frames_arrive(camera: Server, mount: str, codec: str, size: tuple[int, int], transport: str) -> None:
    source, info = opened(camera.url(mount), transport=transport)
    assert (info.codec, info.width, info.height, info.live) == (codec, *size, True)
    frames = source.frames()
    seen = [next(frames) for _ in range(45)]
    source.close()
    # FFmpeg gives the first pictures of a session no time stamp.
    stamps = [f.pts_ns for f in seen if f.pts_ns is not None]
    assert len(stamps) >= 40
    assert stamps == sorted(stamps)
    assert {(f.width, f.height) for f in seen} == {size}
    # What was buffered while probing comes at once, the rest at the camera's own rate.
    assert seen[-1].captured_ns - seen[0].captured_ns > 0.4e9


def test_the_end_of_a_camera_is_a_fault(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "short.mp4", frames=50)
    with rtsp_server(f"short={clip}:h264") as server:
        source, _ = opened(server.url("short"), read_timeout_s=3)
        seen = 0
        with pytest.raises(SourceError) as caught:
            for _ in source.frames():
                seen += 1
    assert seen >= 45
    assert caught.value.reason in ("disconnected", "timeout_read")
    assert not caught.value.permanent


def test_an_unknown_mount(camera: Server) -> None:
    with pytest.raises(SourceError) as caught:
        opened(camera.url("nothing"))
    assert caught.value.reason == "not_found"


def test_a_camera_that_dies_while_streaming() -> None:
    clip = shared("videos/rknn_people-walking.mp4")
    with rtsp_server(f"cam={clip}:h264") as server:
        source, _ = opened(server.url("cam"), read_timeout_s=2)
        frames = source.frames()
        next(frames)
        server.kill()
        started = time.monotonic()
        with pytest.raises(SourceError) as caught:
            for _ in frames:
                pass
        assert caught.value.reason in ("disconnected", "timeout_read")
        assert time.monotonic() - started < 5


def test_credentials() -> None:
    clip = shared("videos/rknn_people-walking.mp4")
    with rtsp_server(f"cam={clip}:h264", user="admin", password="s3cr3t") as server:
        source, info = opened(server.url("cam", "admin:s3cr3t@"))
        assert info.codec == "h264"
        next(iter(source.frames()))
        source.close()
        for wrong in ("admin:wr0ng@", ""):
            with pytest.raises(SourceError) as caught:
                opened(server.url("cam", wrong))
            assert caught.value.reason == "auth"
            assert "wr0ng" not in str(caught.value)
