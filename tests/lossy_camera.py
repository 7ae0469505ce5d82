"""A real RTSP camera whose packets get lost and whose clock can be wrong: sender reports, interleaved TCP or UDP.

Plays a clip once at `speed`; loses whole RTP packets with a seeded generator, so that a run can be repeated.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from rtp_clip import CLOCK, Clip

NTP_EPOCH = 2_208_988_800

Lose = Callable[[int, int, int], bool]
"""Whether packet k of n of picture i is lost."""


class Camera:
    """One camera on a port of its own; each connection is played the clip from its start.

    Args:
        clip: what to play.
        first: pictures left out at the start: a camera joined in mid-GOP.
        count: pictures played.
        lose: which packets to lose.
        speed: times real time at 25 pictures a second; 0 is as fast as the client reads (TCP only).
        report_every: pictures between sender reports; 0 sends none.
        wall: Unix seconds of picture i by the camera's own clock, given i and the true time.
        stamp: the RTP time stamp of picture i, given i and the true one.
    """

    def __init__(
        self,
        clip: Clip,
        *,
        first: int = 0,
        count: int = 1 << 30,
        lose: Lose = lambda i, k, n: False,
        speed: float = 1.0,
        report_every: int = 25,
        wall: Callable[[int, float], float] = lambda i, true: true,
        stamp: Callable[[int, int], int] = lambda i, true: true,
    ) -> None:
        self._clip = clip
        self.pictures = clip.pictures[first : first + count]
        self.lost: list[tuple[int, int, int]] = []
        """Picture, packet of it, and how many it has."""
        self.sent = 0
        self._lose, self._speed, self._report_every, self._wall, self._stamp = lose, speed, report_every, wall, stamp
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"rtsp://127.0.0.1:{self._listener.getsockname()[1]}/camera"
        self._closed = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._closed.set()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        sockets: list[socket.socket] = []
        with connection, contextlib.suppress(OSError), connection.makefile("rb") as requests:
            while line := requests.readline():
                method = line.split()[0].decode()
                headers = {}
                while text := requests.readline().strip():
                    name, _, value = text.decode().partition(":")
                    headers[name.lower()] = value.strip()
                extra, body = "Session: 1\r\n", ""
                if method == "OPTIONS":
                    extra = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
                elif method == "DESCRIBE":
                    body = f"v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\n{self._clip.media()}"
                    extra = f"Content-Type: application/sdp\r\nContent-Length: {len(body)}\r\n"
                elif method == "SETUP" and "TCP" in headers["transport"]:
                    extra += "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n"
                elif method == "SETUP":
                    ports = headers["transport"].split("client_port=")[1].split(";")[0]
                    for port in ports.split("-"):
                        sockets.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                        sockets[-1].connect(("127.0.0.1", int(port)))
                    mine = "-".join(str(s.getsockname()[1]) for s in sockets)
                    extra += f"Transport: RTP/AVP;unicast;client_port={ports};server_port={mine}\r\n"
                connection.sendall(f"RTSP/1.0 200 OK\r\nCSeq: {headers.get('cseq', 0)}\r\n{extra}\r\n{body}".encode())
                if method == "PLAY":
                    self._play(connection, sockets)
                if method in ("PLAY", "TEARDOWN"):
                    break
        for s in sockets:
            s.close()

    def _play(self, connection: socket.socket, sockets: list[socket.socket]) -> None:
        def send(channel: int, data: bytes) -> None:
            if sockets:
                with contextlib.suppress(ConnectionError):
                    sockets[channel].send(data)
            else:
                connection.sendall(b"$" + struct.pack(">BH", channel, len(data)) + data)

        started, sequence = time.time(), 65_000
        for i, picture in enumerate(self.pictures):
            if self._speed and self._closed.wait(max(0.0, started + i / 25 / self._speed - time.time())):
                return
            since = picture.stamp - self.pictures[0].stamp
            stamp = self._stamp(i, since + CLOCK) & 0xFFFFFFFF
            if self._report_every and i % self._report_every == 5:
                wall = self._wall(i, started + since / CLOCK) + NTP_EPOCH
                send(1, struct.pack(">BBHIQIII", 0x80, 200, 6, 7, int(wall * 2**32), stamp, self.sent, 0))
            for k, payload in enumerate(picture.payloads):
                if self._lose(i, k, len(picture.payloads)):
                    self.lost.append((i, k, len(picture.payloads)))
                else:
                    marker = 0x80 if k == len(picture.payloads) - 1 else 0
                    send(0, struct.pack(">BBHII", 0x80, 96 | marker, sequence & 0xFFFF, stamp, 7) + payload)
                    self.sent += 1
                sequence += 1
        self._closed.wait(0.3)


def by_chance(share: float, seed: int = 1) -> Lose:
    """Loses each packet but those of the first picture with probability `share`."""
    generator = random.Random(seed)
    return lambda i, k, n: generator.random() < share and i > 0


def whole_pictures(share: float, seed: int = 1) -> Lose:
    """Loses each picture but the first with probability `share`, all packets of it."""
    return lambda i, k, n: i > 0 and random.Random(seed * 100_003 + i).random() < share


@contextlib.contextmanager
def camera(path: Path, **options: Any) -> Iterator[Camera]:
    """A camera that plays `path` until the block ends."""
    made = Camera(Clip(path), **options)
    try:
        yield made
    finally:
        made.close()


def luma(native: Any) -> Any:
    """The luma plane of a decoded picture, on the host: (height, width) uint8."""
    if native.format.name == "cuda":
        native = native.reformat(format="nv12")
    plane = native.planes[0]
    return np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]


def luma_by_stamp(path: Path, count: int) -> dict[int, Any]:
    """The luma of the first pictures, decoded without loss, by their time stamps in 90 kHz units.

    Args:
        path: a clip that begins with a key frame.
        count: pictures at least.
    """
    out = {}
    with av.open(str(path)) as container:
        stamps = sorted(picture.stamp for picture in Clip(path).pictures)
        for stamp, frame in zip(stamps, container.decode(video=0), strict=False):
            out[stamp] = luma(frame).copy()
            if len(out) >= count + 16:
                break
    return out
