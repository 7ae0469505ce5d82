"""Cameras and clips, read by the daemon's own source and letterbox."""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fuzzing.target import Target

SIZE = (96, 64)
FRAMES = 12


def encode(path: Path, codec: str, options: dict[str, str], *, pix_fmt: str = "yuv420p") -> bytes:
    """A clip of a few moving squares."""
    import av

    width, height = SIZE
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = width, height, pix_fmt, 4
        stream.codec_context.thread_count = 1
        for i in range(FRAMES):
            image = np.full((height, width, 3), 40, np.uint8)
            image[8 + i : 24 + i, 4 * i : 4 * i + 16] = (200, 90, 20 * i)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pix_fmt)))
        out.mux(stream.encode(None))
    return path.read_bytes()


class _Player:
    """Opens an input as the daemon does, and processes each frame as preprocessing does."""

    def __init__(self) -> None:
        from streamd.imaging.letterbox import HostLetterbox

        self._letterbox = HostLetterbox(64, 64)
        self._into = np.empty((64, 64, 3), np.uint8)

    def play(self, change: Callable[[Any], None] = lambda source: None, **settings: Any) -> int:
        """The number of frames received.

        Raises:
            SourceError: none did, and why.
        """
        from pydantic import TypeAdapter

        from streamd.errors import FrameError, SourceError
        from streamd.sources import StreamConfig, open_source

        adapter: TypeAdapter[Any] = TypeAdapter(StreamConfig)
        source = open_source(adapter.validate_python({"id": "x", **settings}))
        change(source)
        count = 0
        try:
            source.open()
            for frame in itertools.islice(source.frames(), 4 * FRAMES):
                assert frame.width > 0
                assert frame.height > 0
                with contextlib.suppress(FrameError):
                    self._letterbox(frame, self._into)
                count += 1
        except SourceError:
            if not count:
                raise
        finally:
            source.close()
        return count


class Clips(Target):
    """Truncated and bit-flipped clips of each codec and container."""

    name = "clips"
    what = "clips (H.264, H.265, MPEG-4 in MP4, TS, Matroska, AVI): AvSource in a thread, letterbox"
    share = 2.6
    limit_s = 20.0
    least = 60
    tokens = (b"\0\0\0\1", b"\0\0\1\xb6", b"moov", b"mdat", b"stsz", b"avcC", b"\x47\x40\0", b"\x1a\x45\xdf\xa3")
    KINDS: tuple[tuple[str, str, dict[str, str], str], ...] = (
        ("libx264", "mp4", {"preset": "veryfast"}, "yuv420p"),
        ("libx264", "ts", {"preset": "veryfast", "bf": "2"}, "yuv420p"),
        ("libx264", "mkv", {"preset": "veryfast", "profile": "high422"}, "yuv422p"),
        ("libx265", "mp4", {"preset": "ultrafast", "x265-params": "log-level=none:pools=1"}, "yuv420p"),
        ("libx265", "ts", {"preset": "ultrafast", "x265-params": "log-level=none:pools=1"}, "yuv420p10le"),
        ("mpeg4", "mp4", {}, "yuv420p"),
        ("mpeg4", "avi", {}, "yuv420p"),
    )

    @classmethod
    def seeds(cls, folder: Path) -> list[bytes]:
        return [
            bytes([i]) + encode(folder / f"clip{i}.{suffix}", codec, options, pix_fmt=pix_fmt)
            for i, (codec, suffix, options, pix_fmt) in enumerate(cls.KINDS)
        ]

    def open(self) -> None:
        self._player = _Player()

    def run(self, data: bytes) -> None:
        # The first byte selects the file's suffix; FFmpeg also examines the content.
        kind = self.KINDS[data[0] % len(self.KINDS)] if data else self.KINDS[0]
        path = self.file(f"c.{kind[1]}", data[1:])
        self._player.play(url=str(path), pace="asap")


class _Recorder:
    """A proxy that records a camera's answers: one entry per answer, then the stream in chunks."""

    def __init__(self, port: int) -> None:
        self.answers: list[bytes] = []
        self._camera = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        client, _ = self._server.accept()
        with client, socket.create_connection(("127.0.0.1", self._camera)) as camera:
            client.settimeout(2)
            camera.settimeout(2)
            with contextlib.suppress(OSError):
                while len(self.answers) < 4:
                    request = client.recv(65536)
                    camera.sendall(request)
                    answer = camera.recv(65536)
                    self.answers.append(answer)
                    client.sendall(answer)
                while len(self.answers) < 40:
                    piece = camera.recv(65536)
                    if not piece:
                        break
                    self.answers.append(piece)
                    client.sendall(piece)

    def close(self) -> None:
        self._server.close()
        self._thread.join(5)


def pack(answers: list[bytes]) -> bytes:
    """Joins answers into one input, each preceded by its length."""
    return b"".join(struct.pack(">H", len(a)) + a for a in answers)


def unpack(data: bytes) -> list[bytes]:
    """Splits an input into answers; tolerates wrong lengths."""
    found, at = [], 0
    while at + 2 <= len(data):
        (length,) = struct.unpack_from(">H", data, at)
        found.append(data[at + 2 : at + 2 + length])
        at += 2 + length
    return found


class Rtsp(Target):
    """A camera with arbitrary answers to OPTIONS, DESCRIBE, SETUP and PLAY, and arbitrary RTP."""

    name = "rtsp"
    what = "RTSP answers, SDP and RTP of a recorded exchange: AvSource in a thread"
    share = 0.6
    limit_s = 15.0
    least = 20
    tokens = (
        b'RTSP/1.0 401 Unauthorized\r\nCSeq: 2\r\nWWW-Authenticate: Digest realm="x", nonce="y"\r\n\r\n',
        b"RTSP/1.0 301 Moved\r\nLocation: rtsp://127.0.0.1:1/x\r\nCSeq: 2\r\n\r\n",
        b"Content-Length: 99999999\r\n",
        b"Content-Length: -1\r\n",
        b"Session: ",
        b"interleaved=255-256",
        b"interleaved=0-0",
        b"m=video 0 RTP/AVP 96\r\n",
        b"a=rtpmap:96 H264/90000\r\n",
        b"a=rtpmap:26 JPEG/90000\r\n",
        b"a=control:rtsp://127.0.0.1:1/\r\n",
        b"$\0\xff\xff",
        b"$\1\0\x08",
        b"\r\n\r\n",
        b"m=audio 0 RTP/AVP 97\r\n",
        b"sprop-parameter-sets=",
        b"packetization-mode=2",
    )

    @classmethod
    def seeds(cls, folder: Path) -> list[bytes]:
        from fakecam import FakeCamera
        from rtp_clip import Clip

        made = []
        for codec, options in (("libx264", Clips.KINDS[0][2]), ("libx265", Clips.KINDS[3][2])):
            path = folder / f"rtsp-{codec}.mp4"
            encode(path, codec, options)
            with FakeCamera(Clip(path), speed=8.0) as camera:
                proxy = _Recorder(camera.port)
                with contextlib.suppress(Exception):
                    _Player().play(url=f"rtsp://127.0.0.1:{proxy.port}/camera", open_timeout_s=5, read_timeout_s=1)
                proxy.close()
            port = str(proxy.port).encode()
            # Every port has five digits, so that replacing one by another changes no length.
            made.append(pack([a.replace(port, b"55555") for a in proxy.answers]))
        return made

    def open(self) -> None:
        self._player = _Player()
        self._answers: list[bytes] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self._port = self._server.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            with client, contextlib.suppress(OSError):
                client.settimeout(1)
                self._answer(client, list(self._answers))

    def _answer(self, client: socket.socket, answers: list[bytes]) -> None:
        for answer in answers[:4]:
            if not client.recv(65536):
                return
            client.sendall(answer.replace(b"55555", str(self._port).encode()))
        for piece in answers[4:]:
            client.sendall(piece)

    def run(self, data: bytes) -> None:
        self._answers = unpack(data)
        url = f"rtsp://u:p@127.0.0.1:{self._port}/camera"
        self._player.play(url=url, open_timeout_s=1, read_timeout_s=0.5, transport="tcp")

    def close(self) -> None:
        self._server.close()


class _Listening:
    """A socket that records what it receives."""

    def __init__(self, inner: socket.socket, heard: list[bytes]) -> None:
        self._inner, self._heard = inner, heard

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def recv_into(self, buffer: bytearray) -> int:
        size = self._inner.recv_into(buffer)
        self._heard.append(bytes(buffer[:size]))
        return size


class _Gone:
    """Stands in for a decoder process whose output has ended."""

    pid, returncode = 0, 0

    def wait(self, timeout: float | None = None) -> int:
        return 0

    def kill(self) -> None:
        pass


class Decoder(Target):
    """A decoder process with corrupted output, which the daemon must survive."""

    name = "decoder"
    what = "messages of a decoder process (isolation: process) and pictures of any shape in shared memory"
    share = 0.8
    least = 20
    tokens = (
        b'"width":', b'"planes":', b"[[96,6144],[48,1536],[48,1536]]", b"[[-96,6144]]", b"[]", b'"yuv420p"', b'"nv12"',
        b'"pal8"', b'"rgb24"', b'"p010le"', b'"bayer_rggb8"', b'"videotoolbox_vld"', b'"gray"', b'"xyz12le"', b"0",
        b"1", b"-1", b"65536", b"4294967295", b"true", b"90", b"S", b"F", b"O", b"B", b"E", b"Z",
    )  # fmt: skip

    @classmethod
    def seeds(cls, folder: Path) -> list[bytes]:
        made = []
        for codec, pix_fmt, options in (("libx264", "yuv420p", {}), ("libx265", "yuv420p10le", Clips.KINDS[4][2])):
            path = folder / f"d-{codec}.mp4"
            encode(path, codec, options, pix_fmt=pix_fmt)
            heard: list[bytes] = []

            def listen(source: Any, heard: list[bytes] = heard) -> None:
                start = source._start

                def started() -> None:
                    start()
                    source._channel.socket = _Listening(source._channel.socket, heard)

                source._start = started

            _Player().play(listen, url=str(path), pace="asap", isolation="process")
            made.append(pack([message for message in heard if message]))
        return made

    def open(self) -> None:
        self._player = _Player()

    def run(self, data: bytes) -> None:
        messages = unpack(data)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            theirs.setblocking(False)
            with contextlib.suppress(OSError):
                for message in filter(None, messages):
                    theirs.send(message)
            theirs.shutdown(socket.SHUT_WR)

            def replay(source: Any) -> None:
                from streamd.sources.shared import Channel

                def started() -> None:
                    source._channel, source._process = Channel(ours), _Gone()
                    source._patience_s = 1.0
                    ours.settimeout(1.0)

                source._start = started

            self._player.play(replay, url="rtsp://127.0.0.1:1/x", isolation="process")


TARGETS: tuple[type[Target], ...] = (Clips, Decoder, Rtsp)
