"""Servers and senders that FFmpeg reads from: silent, refusing, unknown, and well."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamd.errors import SourceError
from streamd.sources.av import AvStreamSettings
from streamd.sources.av_source import AvSource
from tests.clips import write_clip
from tests.serving import udp_of
from tests.sources.test_av import read


@pytest.fixture
def server() -> Iterator[Any]:
    """A TCP port whose behaviour with each connection the test decides."""
    listener = socket.create_server(("127.0.0.1", 0))
    held: list[socket.socket] = []

    def start(serve: Any) -> int:
        def loop() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                held.append(connection)
                serve(connection)

        threading.Thread(target=loop, daemon=True).start()
        return int(listener.getsockname()[1])

    yield start
    listener.close()
    for connection in held:
        connection.close()


@pytest.mark.parametrize("scheme", ["rtsp", "http"])
def test_a_server_that_accepts_and_says_nothing_is_cut_in_time(server: Any, scheme: str) -> None:
    port = server(lambda connection: None)
    started = time.monotonic()
    with pytest.raises(SourceError) as caught:
        read(f"{scheme}://user:geheim@127.0.0.1:{port}/x", open_timeout_s=0.7)
    assert caught.value.reason == "timeout_open"
    assert time.monotonic() - started < 3
    assert "geheim" not in str(caught.value)


def test_a_stream_that_falls_silent_is_cut_in_time(server: Any, tmp_path: Path) -> None:
    body = write_clip(tmp_path / "a.ts", frames=100).read_bytes()

    def serve(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: video/mp2t\r\n\r\n" + body[: len(body) // 2])

    port = server(serve)
    source = AvSource(
        AvStreamSettings(id="s", url=f"http://127.0.0.1:{port}/a.ts", open_timeout_s=10, read_timeout_s=0.7)
    )
    source.open()
    started = time.monotonic()
    with pytest.raises(SourceError) as caught:
        for _ in source.frames():
            started = time.monotonic()
    assert caught.value.reason == "timeout_read"
    assert time.monotonic() - started < 3


def test_refused_and_unknown_host() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(SourceError) as caught:
        read(f"rtsp://127.0.0.1:{port}/x", open_timeout_s=3)
    assert (caught.value.reason, caught.value.permanent) == ("refused", False)
    with pytest.raises(SourceError) as caught:
        read("rtsp://no-such-host.invalid/x", open_timeout_s=5)
    assert caught.value.reason in ("dns", "timeout_open")


def test_a_transport_stream_over_http(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.ts", frames=20)
    script = "import http.server,functools,sys;h=functools.partial(http.server.SimpleHTTPRequestHandler,directory=sys.argv[1]);s=http.server.ThreadingHTTPServer(('127.0.0.1',0),h);print(s.server_port,flush=True);s.serve_forever()"  # noqa: E501
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline())
        source = AvSource(AvStreamSettings(id="s", url=f"http://127.0.0.1:{port}/a.ts"))
        info = source.open()
        # Its length is known: it is a file, which ends.
        assert (info.live, sum(1 for _ in source.frames())) == (False, 20)
        with pytest.raises(SourceError) as caught:
            read(f"http://127.0.0.1:{port}/none.ts")
        assert caught.value.reason == "not_found"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_udp_transport_stream(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.ts", frames=200, gop=5)
    data = clip.read_bytes()
    with udp_of(lambda: data, pause_s=0.003) as url:
        source = AvSource(AvStreamSettings(id="s", url=url, open_timeout_s=20))
        source.open()
        frames = source.frames()
        assert len([next(frames) for _ in range(20)]) == 20
        source.close()
