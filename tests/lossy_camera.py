"""A real RTSP camera whose packets get lost and whose clock can be wrong: sender reports, interleaved TCP or UDP.

Plays a clip once at `speed`; loses whole RTP packets with a seeded generator, so that a run can be repeated.
"""

from __future__ import annotations

import base64
import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

MTU = 1400
CLOCK = 90_000
NTP_EPOCH = 2_208_988_800
PARAMETER_SETS = {"h264": (7, 8), "hevc": (32, 33, 34)}


@dataclass
class Unit:
    """One coded picture."""

    ticks: int
    """Presentation time in 90 kHz units, as the clip has it."""
    key: bool
    nals: list[bytes]


def _nals(data: bytes) -> list[bytes]:
    found, start = [], data.find(b"\0\0\1")
    while start >= 0:
        end = data.find(b"\0\0\1", start + 3)
        found.append(data[start + 3 :] if end < 0 else data[start + 3 : end].rstrip(b"\0"))
        start = end
    return [nal for nal in found if nal]


class Clip:
    """A clip's pictures as a camera would send them.

    Args:
        path: H.264 or H.265 in MP4.
        first: pictures left out at the start: a camera joined in mid-GOP.
        count: pictures taken.
    """

    def __init__(self, path: Path, first: int = 0, count: int = 1 << 30) -> None:
        units = []
        with av.open(str(path)) as container:
            stream: Any = container.streams.video[0]
            self.codec: str = stream.codec_context.name
            unpack = av.bitstream.BitStreamFilterContext(f"{self.codec}_mp4toannexb", stream)
            for packet in container.demux(stream):
                for p in unpack.filter(packet) if packet.size else ():
                    assert p.pts is not None
                    units.append(Unit(int(Fraction(p.pts) * stream.time_base * CLOCK), p.is_keyframe, _nals(bytes(p))))
                if len(units) >= first + count:
                    break
        self.sets = list(dict.fromkeys(n for u in units for n in u.nals if self._type(n) in PARAMETER_SETS[self.codec]))
        self.units = units[first : first + count]

    def _type(self, nal: bytes) -> int:
        return nal[0] & 31 if self.codec == "h264" else nal[0] >> 1 & 63

    def payloads(self, unit: Unit) -> list[bytes]:
        """RTP payloads: single NAL units, and fragments of larger ones (RFC 6184 FU-A, RFC 7798 FU)."""
        out = []
        for nal in unit.nals:
            if len(nal) <= MTU:
                out.append(nal)
                continue
            head = 1 if self.codec == "h264" else 2
            for at in range(head, len(nal), MTU - 3):
                bits = (0x80 if at == head else 0) | (0x40 if at + MTU - 3 >= len(nal) else 0) | self._type(nal)
                first = bytes([nal[0] & 0xE0 | 28]) if head == 1 else bytes([nal[0] & 0x81 | 49 << 1, nal[1]])
                out.append(first + bytes([bits]) + nal[at : at + MTU - 3])
        return out

    def description(self) -> str:
        """SDP."""
        sets = [base64.b64encode(n).decode() for n in self.sets]
        if self.codec == "h264":
            parameters = f"packetization-mode=1;sprop-parameter-sets={','.join(sets)}"
        else:
            names = {32: "vps", 33: "sps", 34: "pps"}
            parameters = ";".join(f"sprop-{names[self._type(n)]}={s}" for n, s in zip(self.sets, sets, strict=True))
        name = {"h264": "H264", "hevc": "H265"}[self.codec]
        return (
            "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\na=control:*\r\nm=video 0 RTP/AVP 96\r\n"
            f"a=rtpmap:96 {name}/{CLOCK}\r\na=fmtp:96 {parameters}\r\na=control:video\r\n"
        )


Lose = Callable[[int, int, int], bool]
"""Whether packet k of n of picture i is lost."""


class Camera:
    """One camera on a port of its own; each connection is played the clip from its start.

    Args:
        clip: what to play.
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
        lose: Lose = lambda i, k, n: False,
        speed: float = 1.0,
        report_every: int = 25,
        wall: Callable[[int, float], float] = lambda i, true: true,
        stamp: Callable[[int, int], int] = lambda i, true: true,
    ) -> None:
        self.clip = clip
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
                    body = self.clip.description()
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

        started, sequence, first = time.time(), 65_000, self.clip.units[0].ticks
        for i, unit in enumerate(self.clip.units):
            if self._speed and self._closed.wait(max(0.0, started + i / 25 / self._speed - time.time())):
                return
            true = unit.ticks - first + CLOCK
            ticks = self._stamp(i, true) & 0xFFFFFFFF
            if self._report_every and i % self._report_every == 5:
                wall = self._wall(i, started + (true - CLOCK) / CLOCK) + NTP_EPOCH
                send(1, struct.pack(">BBHIQIII", 0x80, 200, 6, 7, int(wall * 2**32), ticks, self.sent, 0))
            payloads = self.clip.payloads(unit)
            for k, payload in enumerate(payloads):
                if self._lose(i, k, len(payloads)):
                    self.lost.append((i, k, len(payloads)))
                else:
                    marker = 0x80 if k == len(payloads) - 1 else 0
                    send(0, struct.pack(">BBHII", 0x80, 96 | marker, sequence & 0xFFFF, ticks, 7) + payload)
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
def camera(path: Path, first: int = 0, count: int = 1 << 30, **options: Any) -> Iterator[Camera]:
    """A camera that plays `path` until the block ends."""
    made = Camera(Clip(path, first, count), **options)
    try:
        yield made
    finally:
        made.close()
