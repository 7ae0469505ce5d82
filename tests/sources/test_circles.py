"""Inputs that lead to themselves, or to too many others: each ends soon, with a reason, and takes few descriptors."""

from __future__ import annotations

import contextlib
import http.server
import os
import re
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from streamd.errors import SourceError
from streamd.sources.av import AvStreamSettings
from streamd.sources.av_errors import MAX_TRACKS
from streamd.sources.av_source import AvSource
from streamd.sources.redirects import MAX_ASKED, MAX_REDIRECTS
from tests.clips import write_clip

VARIANTS = 300
_LIVE = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:6\n#EXT-X-MEDIA-SEQUENCE:1\n#EXTINF:6,\nsegment.ts\n"
PLAYLISTS = {
    "/list": "ffconcat version 1.0\nfile list\n",
    "/self.m3u8": _LIVE.replace("segment.ts", "self.m3u8"),
    "/master.m3u8": "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1000\nmaster.m3u8\n",
    "/many.m3u8": "#EXTM3U\n" + "".join(f"#EXT-X-STREAM-INF:BANDWIDTH={n}\nlive.m3u8?{n}\n" for n in range(VARIANTS)),
    "/live.m3u8": _LIVE,
}


class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    requests: ClassVar[Counter[str]]
    segment: ClassVar[bytes]

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.requests[path] += 1
        body = PLAYLISTS[path].encode() if path in PLAYLISTS else self.segment
        with contextlib.suppress(OSError):
            self.send_response(200)
            self.send_header("Content-Type", "video/mp2t" if path == "/segment.ts" else "application/x-mpegurl")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


class Web(http.server.ThreadingHTTPServer):
    request_queue_size = 500
    daemon_threads = True

    def handle_error(self, *_: object) -> None: ...


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    Answer.requests = Counter()
    Answer.segment = write_clip(tmp_path / "segment.ts", frames=10).read_bytes()
    with Web(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def refused(url: str) -> SourceError:
    source = AvSource(AvStreamSettings(id="x", url=url, open_timeout_s=3.0, read_timeout_s=1.0))
    try:
        with pytest.raises(SourceError) as caught:
            source.open()
    finally:
        source.close()
    return caught.value


def test_a_list_over_http_that_names_itself(web: str) -> None:
    error = refused(f"{web}/list")
    assert error.reason == "unsupported"
    assert "ffconcat" in str(error)
    assert Answer.requests["/list"] <= 2


@pytest.mark.parametrize("name", ["self.m3u8", "master.m3u8"])
def test_a_playlist_over_http_that_names_itself(web: str, name: str) -> None:
    error = refused(f"{web}/{name}")
    if name == "master.m3u8":
        assert error.reason == "unsupported"
        assert "leads to itself" in str(error)
    assert Answer.requests[f"/{name}"] < MAX_ASKED + 20


def test_a_playlist_with_hundreds_of_variants_takes_few_descriptors(web: str) -> None:
    most, before, done = 0, len(os.listdir("/proc/self/fd")), threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.01):
            most = max(most, len(os.listdir("/proc/self/fd")))

    watching = threading.Thread(target=watch)
    watching.start()
    error = refused(f"{web}/many.m3u8")
    done.set()
    watching.join()
    # The server's side of each connection is in this process, too.
    assert most - before < 4 * MAX_TRACKS + 50
    assert error.reason == "timeout_open" or f"more than {MAX_TRACKS} tracks or variants" in str(error)


@pytest.mark.parametrize("redirects", ["OPTIONS", "DESCRIBE"])
def test_an_rtsp_server_that_redirects_to_itself(redirects: str) -> None:
    asked = 0

    def answer(connection: socket.socket) -> None:
        nonlocal asked
        with connection, contextlib.suppress(OSError):
            while request := connection.recv(4096).decode():
                number = re.findall(r"CSeq: (\d+)", request)[0]
                if request.startswith(redirects):
                    asked += 1
                    head = f"302 Moved\r\nLocation: rtsp://u:hunter22@127.0.0.1:{port}/again"
                else:
                    head = "200 OK\r\nPublic: OPTIONS, DESCRIBE, SETUP, PLAY"
                connection.sendall(f"RTSP/1.0 {head}\r\nCSeq: {number}\r\nContent-Length: 0\r\n\r\n".encode())

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        threading.Thread(target=serve, daemon=True).start()
        error = refused(f"rtsp://127.0.0.1:{port}/camera")
        listener.shutdown(socket.SHUT_RDWR)
    assert error.reason == "unsupported"
    assert "redirects in a circle" in str(error)
    assert "hunter22" not in str(error)
    assert MAX_REDIRECTS < asked < MAX_REDIRECTS + 8


def names(folder: Path, name: str, *files: str) -> Path:
    path = folder / name
    path.write_text("ffconcat version 1.0\n" + "".join(f"file '{file}'\n" for file in files))
    return path


def test_lists_of_files_on_a_disk(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", frames=10)
    inner = names(tmp_path, "inner.ffconcat", "clip.mp4", "clip.mp4")
    outer = names(tmp_path, "outer.ffconcat", inner.name)
    source = AvSource(AvStreamSettings(id="x", url=str(outer), pace="asap"))
    source.open()
    assert len(list(source.frames())) == 20
    source.close()
    names(tmp_path, "a.ffconcat", "clip.mp4", "b.ffconcat")
    circle = names(tmp_path, "b.ffconcat", "a.ffconcat")
    for path in (circle, names(tmp_path, "self.ffconcat", "self.ffconcat")):
        error = refused(str(path))
        assert error.reason == "unsupported"
        assert error.permanent
        assert "the list contains itself" in str(error)
    error = refused(str(names(tmp_path, "blank.ffconcat", "a clip.mp4")))
    assert error.reason == "permission"
    assert "safe: 0" in str(error)
