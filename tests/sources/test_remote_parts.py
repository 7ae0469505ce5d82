"""Recordings over HTTP that consist of several: decoded to their end, without reading anything twice."""

from __future__ import annotations

import contextlib
import http.server
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streamd.errors import SourceError
from streamd.sources.av import AvStreamSettings
from streamd.sources.av_source import AvSource
from streamd.sources.packet_reader import PacketReader
from streamd.sources.remote_parts import RemoteBytes, RemoteWatch
from tests.clips import write_clip
from tests.serving import HttpServing
from tests.sources.test_part_search import FRAMES
from tests.sources.test_part_search import piece as piece
from tests.sources.test_parts import LARGE, SMALL, parts_of


class Server(HttpServing):
    """Sends parts of files, or only whole ones; notes what it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.parts, self.length = folder, True, True
        self.asked: list[tuple[int, int]] = []
        self.header: str | None = None
        server = self

        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                data = (server.folder / self.path[1:]).read_bytes()
                server.header = self.headers.get("X-Key")
                found = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
                begin, end = 0, len(data)
                if found is not None and server.parts:
                    begin, end = int(found[1]), min(int(found[2] or end) + 1, end)
                server.asked.append((begin, end))
                self.send_response(206 if server.parts and found is not None else 200)
                if server.parts:
                    self.send_header("Accept-Ranges", "bytes")
                    self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(data)}")
                if server.length:
                    self.send_header("Content-Length", str(end - begin))
                self.end_headers()
                with contextlib.suppress(OSError):
                    for at in range(begin, end, 4096):
                        self.wfile.write(data[at : min(at + 4096, end)])
                        time.sleep(0 if server.length else 0.005)

            def log_message(self, *_: Any) -> None: ...

        super().__init__(Answer)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path) as found:
        yield found


class Truth:
    """Packets of the video that FFmpeg has passed on, but those that are read again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.packets = 0
        demux = PacketReader._demux

        def demuxed(reader: PacketReader, wanted: Any) -> Iterator[Any]:
            for packet in demux(reader, wanted):
                counts = packet.stream is reader._connection.stream and packet.size > 0
                self.packets += counts
                yield packet

        monkeypatch.setattr(PacketReader, "_demux", demuxed)
        put = RemoteWatch.put

        def watched(watch: RemoteWatch, packet: Any) -> Any:
            try:
                return put(watch, packet)
            except Exception:
                self.packets -= 1
                raise

        monkeypatch.setattr(RemoteWatch, "put", watched)


@pytest.mark.parametrize("kind", ["mp4", "front.mp4", "fragments.mp4", "mkv", "avi", "flv", "asf"])
@pytest.mark.parametrize("other", ["h264", "other"])
def test_joined_recordings(
    server: Server, tmp_path: Path, piece: Callable[..., bytes], kind: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = other if other == "h264" else "mpeg4" if kind in ("avi", "asf") else "h264" if kind == "flv" else "hevc"
    name = f"a.{kind}"
    (tmp_path / name).write_bytes(piece(kind) + piece(kind, codec, LARGE) + piece(kind))
    truth = Truth(monkeypatch)
    parts, source = parts_of(Path(name), url=f"{server.url}/{name}", options={"headers": "X-Key: 1\r\n"})
    small = ("h264", *SMALL, FRAMES)
    assert parts == [small, (codec, *LARGE, FRAMES), small]
    assert source.corrupt == 0
    assert truth.packets == 3 * FRAMES
    assert server.header == "1"


@pytest.mark.parametrize("kind", ["front.mp4", "fragments.mp4", "mkv", "flv"])
def test_one_recording_is_asked_for_as_before(
    server: Server, tmp_path: Path, piece: Callable[..., bytes], kind: str
) -> None:
    (tmp_path / f"a.{kind}").write_bytes(piece(kind))
    parts, _ = parts_of(Path("a"), url=f"{server.url}/a.{kind}")
    assert parts == [("h264", *SMALL, FRAMES)]
    assert len(server.asked) <= 3, "by FFmpeg alone"


@pytest.mark.parametrize("kind", ["mkv", "front.mp4", "avi"])
def test_a_server_that_sends_no_parts(server: Server, tmp_path: Path, piece: Callable[..., bytes], kind: str) -> None:
    """What it answers is taken for no part: everything that FFmpeg reads is decoded."""
    server.parts = False
    (tmp_path / f"a.{kind}").write_bytes(piece(kind) * 2)
    parts, _ = parts_of(Path("a"), url=f"{server.url}/a.{kind}")
    assert parts == [("h264", *SMALL, FRAMES * (1 if kind == "front.mp4" else 2))]


@pytest.mark.parametrize("kind", ["mp4", "mkv", "avi", "flv"])
def test_the_second_one_is_broken(server: Server, tmp_path: Path, piece: Callable[..., bytes], kind: str) -> None:
    data = piece(kind, "h264", LARGE)
    (tmp_path / f"a.{kind}").write_bytes(piece(kind) + data[:60] + bytes(5000))
    parts, source = parts_of(Path("a"), url=f"{server.url}/a.{kind}")
    assert parts == [("h264", *SMALL, FRAMES)]
    assert source.corrupt <= 1
    assert len(server.asked) < 30


def test_a_live_stream_with_another_document_is_reconnected(server: Server, tmp_path: Path) -> None:
    """FFmpeg gave its pictures to the first one's decoder, which made others of them."""
    pieces = [
        write_clip(
            tmp_path / f"{size[0]}.mkv", frames=FRAMES, size=size, options={"bf": "0"}, container_options={"live": "1"}
        ).read_bytes()
        for size in (SMALL, LARGE)
    ]
    (tmp_path / "a.mkv").write_bytes(b"".join(pieces))
    server.parts = server.length = False
    source = AvSource(AvStreamSettings(id="s", url=f"{server.url}/a.mkv"))
    source.open()
    sizes: list[tuple[int, int]] = []
    with pytest.raises(SourceError, match=r"another recording begins .*; reconnecting") as caught:
        sizes.extend((frame.width, frame.height) for frame in source.frames())
    assert sizes == [SMALL] * FRAMES
    assert not caught.value.permanent


def test_a_stop_ends_a_search(tmp_path: Path) -> None:
    (tmp_path / "a.mkv").write_bytes(bytes(range(256)) * 1024)
    closed = threading.Event()
    with Server(tmp_path) as server:
        settings = AvStreamSettings(id="s", url=f"{server.url}/a.mkv")
        read = RemoteBytes(settings, 256 * 1024, closed)
        assert read(256, 4) == b"\0\1\2\3"
        asked = len(server.asked)
        closed.set()
        assert read(128 * 1024, 4) == b""
        assert len(server.asked) == asked
