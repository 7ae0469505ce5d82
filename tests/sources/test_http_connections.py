"""Recordings over HTTP/1.1 from servers whose answers do not say that they close the connection, as FFmpeg asks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from streamd.sources.av import AvStreamSettings
from streamd.sources.av_source import AvSource
from tests.clips import write_clip
from tests.sources.test_remote_parts import Server

FRAMES = 40


def noise(width: int, height: int, i: int, pix_fmt: str) -> av.VideoFrame:
    """A picture that cannot be compressed: FFmpeg reads a small file at once, and moves to no other byte of it."""
    values = np.random.default_rng(i).integers(0, 255, (height * 3 // 2, width), np.uint8)
    return av.VideoFrame.from_ndarray(values, "yuv420p").reformat(format=pix_fmt)


def times(url: str, **settings: Any) -> list[int | None]:
    source = AvSource(AvStreamSettings(id="s", url=url, pace="asap", **settings))
    try:
        source.open()
        return [frame.pts_ns for frame in source.frames()]
    finally:
        source.close()


# What FFmpeg reads at the end of a file first: the index of MP4 and AVI, the duration of MPEG streams.
@pytest.mark.parametrize("suffix", [".mp4", ".ts", ".avi", ".mpg"])
def test_no_picture_is_lost(tmp_path: Path, suffix: str) -> None:
    codec = "mpeg2video" if suffix == ".mpg" else "libx264"
    options = {"qmax": "2", "b": "40000000"} if suffix == ".mpg" else {"preset": "ultrafast", "qp": "10"}
    path = write_clip(
        tmp_path / f"clip{suffix}", frames=FRAMES, size=(320, 240), codec=codec, options=options, draw=noise
    )
    expected = times(str(path))
    assert len(expected) == FRAMES
    with Server(tmp_path) as server:
        server._server.RequestHandlerClass.protocol_version = "HTTP/1.1"  # type: ignore[attr-defined]
        assert times(f"{server.url}/{path.name}") == expected
        assert len(server.asked) > 1


def test_other_servers_are_asked_once(tmp_path: Path) -> None:
    path = write_clip(
        tmp_path / "clip.ts", frames=FRAMES, size=(320, 240), options={"preset": "ultrafast", "qp": "10"}, draw=noise
    )
    with Server(tmp_path) as server:  # of HTTP/1.0
        assert len(times(f"{server.url}/{path.name}")) == FRAMES
        assert [begin for begin, _ in server.asked].count(0) == 2  # and once more behind the end
