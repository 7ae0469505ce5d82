"""One connection to the fake camera: its answers and packets."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
import time
from typing import TYPE_CHECKING

from rtp_clip import CLOCK, Picture

if TYPE_CHECKING:
    from fakecam import FakeCamera

NTP_EPOCH = 2_208_988_800
"""Seconds from 1900 to 1970."""
HITS = ("loss", "reorder", "truncate", "flip")
"""Faults that hit some of the packets."""
PER_PACKET = (*HITS, "drip")
"""Faults of single packets; without one of them, a picture is one write."""
JUMP_EVERY_S = 5.0
"""Time between two jumps of the time stamps."""
REALM, NONCE = "fakecam", "5ccc069c403ebaf9f0171e9517f40e41"


class Connection:
    """Serves one client."""

    def __init__(self, camera: FakeCamera, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._camera, self._reader, self._writer = camera, reader, writer
        self._sockets: list[socket.socket] = []
        self._player: asyncio.Task[None] | None = None
        self.task = asyncio.current_task()

    def abort(self) -> None:
        """Resets the connection."""
        self._writer.transport.abort()

    def close(self) -> None:
        if self._player is not None:
            self._player.cancel()
        for s in self._sockets:
            s.close()
        self._writer.close()

    async def serve(self) -> None:
        raw = self._writer.get_extra_info("socket")
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        camera = self._camera
        while camera.fault[0] != "mute":
            line = await self._reader.readexactly(1)
            if line == b"$":  # the client's receiver reports
                await self._reader.readexactly(struct.unpack(">xH", await self._reader.readexactly(3))[0])
                continue
            line += await self._reader.readline()
            headers: dict[str, str] = {}
            while text := (await self._reader.readline()).decode().strip():
                name, _, value = text.partition(":")
                headers[name.lower()] = value.strip()
            method = line.split()[0].decode()
            camera.requests[method] += 1
            if camera.fault == ("hang", method):
                break
            if not await self._answer(method, headers):
                return
        await self._reader.read()  # until the client disconnects

    async def _answer(self, method: str, headers: dict[str, str]) -> bool:
        """Answers one request; False if the connection then ends."""
        camera, status, extra, body = self._camera, "200 OK", "", ""
        name, argument = camera.fault
        scheme = camera.scheme() if method in ("DESCRIBE", "SETUP", "PLAY") else None
        if scheme is not None and not camera.admits(method, headers.get("authorization", "")):
            nonce = f', nonce="{NONCE}"' if scheme == "digest" else ""
            status, extra = "401 Unauthorized", f'WWW-Authenticate: {scheme.title()} realm="{REALM}"{nonce}\r\n'
        elif method == "OPTIONS":
            extra = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, GET_PARAMETER, TEARDOWN\r\n"
        elif method == "DESCRIBE" and name == "status":
            status = f"{argument} Fault"
        elif method == "DESCRIBE":
            body = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=fakecam\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\na=control:*\r\n"
            body += camera.current().media()
            extra = f"Content-Base: {camera.url}/\r\nContent-Type: application/sdp\r\nContent-Length: {len(body)}\r\n"
        elif method == "SETUP":
            extra = f"Transport: {self._set_up(headers['transport'])}\r\nSession: 7;timeout=60\r\n"
        else:
            extra = "Session: 7\r\n"
        self.write(f"RTSP/1.0 {status}\r\nCSeq: {headers.get('cseq', 0)}\r\n{extra}\r\n{body}".encode())
        await self._writer.drain()
        if method == "PLAY" and status.startswith("200") and self._player is None:
            camera.sessions += 1
            self._player = asyncio.create_task(self._play())
        return method != "TEARDOWN"

    def _set_up(self, transport: str) -> str:
        if "TCP" in transport:
            return "RTP/AVP/TCP;unicast;interleaved=0-1"
        found = re.search(r"client_port=(\d+)-(\d+)", transport)
        assert found is not None, transport
        for port in found.groups():
            s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            s.setblocking(False)
            s.connect(("127.0.0.1", int(port)))
            self._sockets.append(s)
        mine = "-".join(str(s.getsockname()[1]) for s in self._sockets)
        return f"RTP/AVP;unicast;{found[0]};server_port={mine}"

    async def _play(self) -> None:
        try:
            with contextlib.suppress(OSError):
                await Player(self, self._camera).run()
        finally:
            self.abort()

    def write(self, data: bytes) -> None:
        """Writes to the TCP connection; a few bytes at a time for the fault `drip`."""
        name, argument = self._camera.fault
        step = int(argument) if name == "drip" else len(data) or 1
        for at in range(0, len(data), step):
            if self._writer.transport.is_closing():
                raise ConnectionResetError
            self._writer.write(data[at : at + step])

    async def send(self, channel: int, data: bytes) -> None:
        """One RTP (channel 0) or RTCP (1) packet, the way the client asked for."""
        if self._sockets:
            with contextlib.suppress(ConnectionError, BlockingIOError):
                self._sockets[channel].send(data)
            return
        self.write(_interleaved(channel, data))
        await self._writer.drain()

    async def send_all(self, packets: list[bytes]) -> None:
        """Several RTP packets, over TCP in one write."""
        if self._sockets:
            for packet in packets:
                await self.send(0, packet)
            return
        self.write(b"".join([_interleaved(0, packet) for packet in packets]))
        await self._writer.drain()


def _interleaved(channel: int, data: bytes) -> bytes:
    """A packet as RTSP carries it over TCP (RFC 2326, 10.12)."""
    return b"$" + struct.pack(">BH", channel, len(data)) + data


class Player:
    """One session's pictures, packets and sender reports."""

    def __init__(self, connection: Connection, camera: FakeCamera) -> None:
        self._connection, self._camera = connection, camera
        self._started = time.monotonic()
        self._sequence = camera.random.randrange(1 << 16)
        self._base = camera.random.randrange(1 << 32)
        self._ssrc = camera.random.randrange(1 << 32)
        self._last = self._base
        self._round = (self._started, 0.0, 1.0)
        """When the clip's present round began, the stream time of what was taken then, and times real time."""
        self._held: bytes | None = None
        self._next_report = 0.0
        self._packets = self._octets = 0
        self._life = camera.random.expovariate(1.0)

    async def run(self) -> None:
        """Plays until the connection ends."""
        camera = self._camera
        clip, index, sent = camera.current(), 0, 0
        origin, ticks, slow = time.monotonic(), 0.0, 1.0 / camera.speed
        while True:
            name, argument = camera.fault
            if camera.current() is not clip:
                ticks += 0 if index == 0 else clip.pictures[index - 1].due + CLOCK / clip.fps
                origin, clip, index = time.monotonic(), camera.current(), 0
            picture = clip.pictures[index]
            before, slow = slow, (2.0 if name == "half_rate" else 1.0) / camera.speed
            origin += picture.due / CLOCK * (before - slow)
            ticks += picture.due * camera.speed * (before - slow)
            self._round = (origin, ticks + clip.delay, camera.speed)
            await self._until(origin + picture.due / CLOCK * slow, name, argument)
            stamp = int(ticks + picture.stamp * slow * camera.speed)
            if name == "none" or self._goes(name, argument, picture, sent):
                await self._picture(picture, stamp)
                sent += 1
                camera.pictures += 1
            index += 1
            if index == len(clip.pictures):
                ticks += clip.duration * slow * camera.speed
                origin, index = origin + clip.duration / CLOCK * slow, 0

    async def _until(self, due: float, name: str, argument: str) -> None:
        if name == "burst":
            length = float(argument)
            due = self._started + ((due - self._started) // length + 1) * length
        while (left := due - time.monotonic()) > 0:
            await self._report()
            await asyncio.sleep(min(left, 0.1))

    def _goes(self, name: str, argument: str, picture: Picture, sent: int) -> bool:
        """Whether the picture is sent; a connection that ends raises."""
        now = time.monotonic()
        since = max(self._started, self._camera.since)
        if name in ("silence", "rtcp_only"):
            return now < since + float(argument)
        if name == "no_keyframe":
            return not picture.key
        if (name == "disconnect" and now > since + self._life * float(argument)) or (
            name == "hangup" and sent >= int(argument)
        ):
            raise ConnectionResetError
        return True

    def _silent(self) -> bool:
        name, argument = self._camera.fault
        return name == "silence" and time.monotonic() >= max(self._started, self._camera.since) + float(argument)

    def _stamped(self, stamp: float) -> int:
        """The RTP time stamp of stream time `stamp`."""
        name, argument = self._camera.fault
        if name in ("forward", "back"):
            jumps = (time.monotonic() - max(self._started, self._camera.since)) // JUMP_EVERY_S
            stamp += jumps * float(argument) * CLOCK * (1 if name == "forward" else -1)
        return (self._base + int(stamp)) & 0xFFFFFFFF

    async def _picture(self, picture: Picture, stamp: int) -> None:
        name, argument = self._camera.fault
        ticks = self._last
        if name != "repeat" or self._camera.random.random() >= float(argument):
            ticks = self._last = self._stamped(stamp)
        last = len(picture.payloads) - 1
        whole = None if name in PER_PACKET or self._held is not None else list[bytes]()
        for k, payload in enumerate(picture.payloads):
            head = struct.pack(">BBHII", 0x80, 96 | (0x80 if k == last else 0), self._sequence, ticks, self._ssrc)
            self._sequence = (self._sequence + 1) & 0xFFFF
            self._packets += 1
            self._octets += len(payload)
            if whole is None:
                await self._packet(head, payload)
            else:
                whole.append(head + payload)
        if whole is not None:
            self._camera.packets["sent"] += len(whole)
            await self._connection.send_all(whole)

    async def _packet(self, head: bytes, payload: bytes) -> None:
        camera = self._camera
        name, argument = camera.fault
        chance, packets = camera.random.random(), camera.packets
        hit = name in HITS and chance < float(argument)
        if hit and name == "loss":
            packets["lost"] += 1
            return
        if hit and name == "truncate":
            packets["truncated"] += 1
            payload = payload[: camera.random.randrange(1, max(2, len(payload)))]
        elif hit and name == "flip":
            packets["flipped"] += 1
            bit = camera.random.randrange(len(payload) * 8)
            damaged = bytearray(payload)
            damaged[bit // 8] ^= 1 << bit % 8
            payload = bytes(damaged)
        packets["sent"] += 1
        held, self._held = self._held, None
        if hit and name == "reorder" and held is None:
            packets["reordered"] += 1
            self._held = head + payload
            return
        await self._connection.send(0, head + payload)
        if held is not None:
            await self._connection.send(0, held)

    async def _report(self) -> None:
        """A sender report (RFC 3550, 6.4.1), where one is due: this wall time is that RTP time."""
        camera, now = self._camera, time.monotonic()
        if not camera.report_s or now < self._next_report or self._silent():
            return
        self._next_report = now + camera.report_s
        origin, ticks, speed = self._round
        stamp = self._stamped(ticks + (now - origin) * CLOCK * speed)
        ntp = int((camera.wall(time.time()) + NTP_EPOCH) * 2**32) & 0xFFFFFFFFFFFFFFFF
        report = struct.pack(
            ">BBHIQIII", 0x80, 200, 6, self._ssrc, ntp, stamp, self._packets, self._octets & 0xFFFFFFFF
        )
        await self._connection.send(1, report)
