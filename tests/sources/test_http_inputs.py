"""What comes over HTTP: a playlist, a file, a camera's multipart stream, a snapshot. Told apart by what it is."""

from __future__ import annotations

import contextlib
import http.server
import threading
import time
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from streamd.errors import SourceError
from streamd.sources.av import AvStreamSettings
from streamd.sources.av_source import AvSource
from streamd.types import Frame
from tests.clips import picture, write_clip

SEGMENT_S = 2
FPS = 10


class Camera(http.server.ThreadingHTTPServer):
    """Serves a folder, a live playlist of its segments, `/video` (multipart JPEG) and `/snapshot` (one JPEG)."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.folder = folder
        self.began: float | None = None
        self.snapshots = 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.jpeg = cv2.imencode(".jpg", np.full((48, 64, 3), 90, np.uint8))[1].tobytes()


class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Camera

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        with contextlib.suppress(OSError):
            if path == "/video":
                self._video()
            elif path == "/snapshot":
                self.server.snapshots += 1
                self._whole(self.server.jpeg, "image/jpeg")
            elif path.startswith("/old/"):  # HTTP/1.0 without a length: the answer ends with the connection
                snapshot = path == "/old/snapshot"
                self.server.snapshots += snapshot
                self.protocol_version = "HTTP/1.0"
                self.send_response(200)
                self.end_headers()
                self.wfile.write(self.server.jpeg if snapshot else (self.server.folder / path[5:]).read_bytes())
            elif path == "/live.m3u8":
                self._whole(self._playlist(), "application/vnd.apple.mpegurl")
            elif (self.server.folder / path[1:]).is_file():
                self._whole((self.server.folder / path[1:]).read_bytes(), "application/octet-stream")
            else:
                self.send_error(404)

    def _whole(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _playlist(self) -> bytes:
        server = self.server
        if server.began is None:
            server.began = time.monotonic()
        last = 1 + int((time.monotonic() - server.began) / SEGMENT_S)
        names = [f"segment{i}.ts" for i in range(last + 1) if (server.folder / f"segment{i}.ts").is_file()]
        head = f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:{SEGMENT_S}\n#EXT-X-MEDIA-SEQUENCE:0\n"
        return (head + "".join(f"#EXTINF:{SEGMENT_S}.0,\n{name}\n" for name in names)).encode()

    def _video(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        jpeg, due = self.server.jpeg, time.monotonic()
        while True:
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
            self.wfile.write(head.encode() + jpeg + b"\r\n")
            due += 1 / FPS
            time.sleep(max(0, due - time.monotonic()))

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def camera(tmp_path: Path) -> Iterator[Camera]:
    server = Camera(tmp_path)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def opened(url: str, **settings: Any) -> AvSource:
    return AvSource(AvStreamSettings(id="s", url=url, **settings))


def read(source: AvSource, count: int | None = None) -> list[Frame]:
    try:
        source.open()
        return list(islice(source.frames(), count))
    finally:
        source.close()


def frames_of(source: AvSource) -> Iterator[Frame]:
    source.open()
    return source.frames()


def gaps(frames: list[Frame]) -> list[float]:
    return [(b.captured_ns - a.captured_ns) / 1e9 for a, b in pairwise(frames)]


def write_segments(folder: Path) -> None:
    """Of `/live.m3u8`."""
    options = {"hls_time": str(SEGMENT_S), "hls_list_size": "0", "hls_segment_filename": str(folder / "segment%d.ts")}
    with av.open(str(folder / "all.m3u8"), "w", format="hls", options=options) as container:
        stream = container.add_stream("libx264", rate=FPS, options={"g": str(FPS * SEGMENT_S), "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(FPS * SEGMENT_S * 6):
            container.mux(stream.encode(picture(64, 48, i)))
        container.mux(stream.encode(None))


def test_hls_is_played_at_its_own_rate_over_silences_longer_than_the_limit(camera: Camera, tmp_path: Path) -> None:
    write_segments(tmp_path)
    source = opened(f"{camera.url}/live.m3u8", read_timeout_s=1)
    frames = read(source, FPS * 7)  # segments come every two seconds, twice the limit
    assert len(frames) == FPS * 7
    found = gaps(frames)
    assert sum(found) == pytest.approx(7 - 1 / FPS, abs=1)
    assert sorted(found)[len(found) // 2] == pytest.approx(1 / FPS, abs=0.03)


def test_hls_as_fast_as_it_comes_is_not_behind(camera: Camera, tmp_path: Path) -> None:
    """A segment comes at once: its first pictures have waited for its last ones at the sender, and not here."""
    write_segments(tmp_path)
    source = opened(f"{camera.url}/live.m3u8", read_timeout_s=1, pace="asap")
    source.open()
    frames = source.frames()
    for _ in range(FPS * SEGMENT_S * 3):
        asked_ns = time.monotonic_ns()
        assert next(frames).captured_ns >= asked_ns
    assert source.behind_s is None
    frames.close()


@pytest.mark.parametrize("suffix", [".mkv", ".ts"])  # a transport stream has no duration over HTTP, only a length
def test_a_file_over_http_is_played_and_ends(camera: Camera, tmp_path: Path, suffix: str) -> None:
    write_clip(tmp_path / f"clip{suffix}", frames=12, fps=FPS, options={"bf": "0"})
    source = opened(f"{camera.url}/clip{suffix}")
    info = source.open()
    assert not info.live
    frames = list(source.frames())  # no error: it ends
    assert len(frames) == 12
    assert sum(gaps(frames)) == pytest.approx(1.1, abs=0.3)
    assert len(read(opened(f"{camera.url}/clip{suffix}", pace="asap"))) == 12


def test_a_file_without_a_length_ends_with_its_connection(camera: Camera, tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mkv", frames=12, fps=FPS, options={"bf": "0"})
    assert len(list(islice(frames_of(opened(f"{camera.url}/old/clip.mkv")), 20))) == 12
    write_clip(tmp_path / "long.mkv", frames=60, fps=FPS, options={"bf": "0"})
    data = (tmp_path / "long.mkv").read_bytes()
    (tmp_path / "long.mkv").write_bytes(data[: len(data) // 3])
    with pytest.raises(SourceError, match="closed the connection"):  # two thirds of it are missing
        list(frames_of(opened(f"{camera.url}/old/long.mkv", pace="asap")))


def test_dash_is_named(camera: Camera, tmp_path: Path) -> None:
    (tmp_path / "a.mpd").write_text('<?xml version="1.0"?><MPD/>')
    with pytest.raises(SourceError, match="do not read DASH"):
        opened(f"{camera.url}/a.mpd").open()


@pytest.mark.parametrize("path", ["/snapshot", "/snapshot?channel=1", "/old/snapshot"])
def test_a_snapshot_url_is_polled(camera: Camera, path: str) -> None:
    frames = read(opened(camera.url + path, every_s=0.3), 4)
    assert len(frames) == 4
    assert camera.snapshots >= 4
    assert all(0.25 < gap < 0.9 for gap in gaps(frames))
    assert {frame.pts_ns for frame in frames} == {None}


def test_max_fps_counts_by_arrival_where_the_media_clock_is_invented(camera: Camera) -> None:
    frames = read(opened(f"{camera.url}/video", max_fps=5), 12)
    assert sum(gaps(frames)) == pytest.approx(11 / 5, rel=0.2)
    assert {frame.pts_ns for frame in frames} == {None}  # FFmpeg would have it that the camera sends 25 a second
    every = read(opened(f"{camera.url}/video", max_fps=FPS), 12)
    assert sum(gaps(every)) == pytest.approx(11 / FPS, rel=0.3)


def test_an_image_file_with_loop_is_a_slow_camera(tmp_path: Path) -> None:
    good, data = cv2.imencode(".jpg", np.full((48, 64, 3), 90, np.uint8))
    assert good
    (tmp_path / "a.jpg").write_bytes(data.tobytes())
    frames = read(opened(str(tmp_path / "a.jpg"), loop=True, every_s=0.3), 4)
    assert all(0.25 < gap < 0.6 for gap in gaps(frames))
    assert len(read(opened(str(tmp_path / "a.jpg")))) == 1
