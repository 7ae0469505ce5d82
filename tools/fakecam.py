#!/usr/bin/env python3
"""A fake RTSP camera that plays a real clip, with faults on command.

usage: fakecam.py CLIP [--fault NAME[:ARG]] [--port P] [--alternate CLIP] [--user U --password P [--basic]]
       fakecam.py --list

While it runs, a line "NAME[:ARG]" on standard input changes the fault. In a test:

    with FakeCamera(Clip(path)) as camera:
        ...camera.url...
        camera.set("silence:0")
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import random
import re
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from rtp_clip import CLOCK, Clip, Picture

NTP_EPOCH = 2_208_988_800
"""Seconds from 1900 to 1970."""
JUMP_EVERY_S = 5.0
"""Time between two jumps of the time stamps."""
_REALM, _NONCE = "fakecam", "5ccc069c403ebaf9f0171e9517f40e41"

FAULTS: dict[str, tuple[str, str]] = {
    "none": ("", "plays the clip in a loop"),
    "refuse": ("", "nothing listens; who is connected is cut off"),
    "mute": ("", "accepts connections and never says anything"),
    "hang": ("DESCRIBE", "never answers the request ARG (OPTIONS, DESCRIBE, SETUP or PLAY)"),
    "status": ("404", "answers DESCRIBE with the RTSP status ARG"),
    "unauthorized": ("digest", "refuses every password; ARG is the scheme, basic or digest"),
    "silence": ("2", "sends nothing any more ARG seconds after PLAY"),
    "rtcp_only": ("2", "sends nothing but sender reports ARG seconds after PLAY"),
    "loss": ("0.02", "loses the share ARG of the RTP packets"),
    "reorder": ("0.05", "lets the share ARG of the RTP packets change places with the next"),
    "truncate": ("0.02", "cuts the share ARG of the RTP packets short"),
    "flip": ("0.02", "flips one bit in the share ARG of the RTP packets"),
    "forward": ("10", "time stamps jump ahead by ARG seconds, every five seconds"),
    "back": ("10", "time stamps jump back by ARG seconds, every five seconds"),
    "repeat": ("0.5", "the share ARG of the pictures has the time stamp of the one before"),
    "resize": ("2", "goes on with the alternate clip (another size) after ARG seconds"),
    "codec": ("2", "goes on with the alternate clip (another codec) after ARG seconds"),
    "no_keyframe": ("", "never sends a key frame"),
    "half_rate": ("", "sends half of the declared frame rate"),
    "burst": ("1", "sends what ARG seconds hold at once, then nothing for as long"),
    "drip": ("1", "writes ARG bytes at a time"),
    "disconnect": ("5", "cuts the connection at random, after ARG seconds in the mean"),
    "hangup": ("10", "closes the connection after ARG pictures"),
}
"""Every fault: the default of its argument, and what it does."""


def parse_fault(text: str) -> tuple[str, str]:
    """`NAME[:ARG]` as name and argument.

    Raises:
        ValueError: no such fault, or an argument that cannot be used.
    """
    name, _, argument = text.partition(":")
    if name not in FAULTS:
        raise ValueError(f"unknown fault {name}; expected one of {', '.join(FAULTS)}")
    argument = argument or FAULTS[name][0]
    if name == "hang":
        argument = argument.upper()
    elif name == "unauthorized" and argument not in ("basic", "digest"):
        raise ValueError(f"fault {name}: {argument} is no scheme; expected basic or digest")
    elif name != "unauthorized" and argument:
        float(argument)
    return name, argument


class FakeCamera:
    """One camera on a port of its own. Every connection is a session that plays the clip from its start.

    Args:
        clip: what it plays.
        fault: `NAME[:ARG]` of `FAULTS`.
        port: 0 takes a free one.
        alternate: the other clip of the faults `resize` and `codec`.
        user: asked of every client where given.
        password: the same.
        scheme: of that login, basic or digest.
        report_s: seconds between sender reports; 0 sends none.
        wall: the camera's own wall clock, Unix seconds, given the true one. May be replaced while it runs.
        speed: times real time.
        seed: of everything random.
    """

    def __init__(
        self,
        clip: Clip,
        fault: str = "none",
        *,
        port: int = 0,
        alternate: Clip | None = None,
        user: str = "",
        password: str = "",
        scheme: str = "digest",
        report_s: float = 1.0,
        wall: Callable[[float], float] = lambda true: true,
        speed: float = 1.0,
        seed: int = 1,
    ) -> None:
        self.clip, self.alternate = clip, alternate
        self.report_s, self.wall, self.speed = report_s, wall, speed
        self.random = random.Random(seed)
        self.connections = 0
        """TCP connections taken so far."""
        self.sessions = 0
        """Sessions that came as far as PLAY."""
        self.active = 0
        """Connections that are open."""
        self.requests: Counter[str] = Counter()
        """RTSP requests by method."""
        self.pictures = 0
        """Pictures sent, in all sessions."""
        self.packets: Counter[str] = Counter()
        """RTP packets: sent, lost, reordered, truncated, flipped."""
        self._login = (user, password, scheme)
        self._fault = parse_fault(fault)
        self._check_alternate()
        self.since = time.monotonic()
        """When the fault began."""
        self._server: asyncio.Server | None = None
        self._open: set[_Connection] = set()
        with socket.create_server(("127.0.0.1", port)) as probe:
            self.port: int = probe.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fakecam", daemon=True)

    @property
    def url(self) -> str:
        """Without a login."""
        return self.url_as("")

    def url_as(self, credentials: str) -> str:
        """With `user:password`."""
        return f"rtsp://{credentials}{'@' if credentials else ''}127.0.0.1:{self.port}/camera"

    @property
    def fault(self) -> tuple[str, str]:
        """Name and argument."""
        return self._fault

    def start(self) -> FakeCamera:
        """Listens, unless the fault is `refuse`."""
        self._thread.start()
        self.since = time.monotonic()
        self._call(self._listen())
        return self

    def stop(self) -> None:
        """Cuts every connection and frees the port."""
        self._call(self._unlisten())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> FakeCamera:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def set(self, fault: str) -> None:
        """Changes the fault, for sessions under way too. Any thread.

        Raises:
            ValueError: see `parse_fault`.
        """
        parsed = parse_fault(fault)

        async def change() -> None:
            self._fault, self.since = parsed, time.monotonic()
            await (self._unlisten() if parsed[0] == "refuse" else self._listen())

        before, self._fault = self._fault, parsed
        try:
            self._check_alternate()
        finally:
            self._fault = before
        self._call(change())

    def cut(self) -> None:
        """Cuts every connection once. Any thread."""

        async def now() -> None:
            for connection in list(self._open):
                connection.abort()

        self._call(now())

    def _check_alternate(self) -> None:
        name = self._fault[0]
        if name in ("resize", "codec") and self.alternate is None:
            raise ValueError(f"fault {name}: needs an alternate clip")

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        if self._server is None and self._fault[0] != "refuse":
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    async def _unlisten(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
        tasks = [c.task for c in self._open if c.task is not None]
        for connection in list(self._open):
            connection.abort()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(self, reader, writer)
        self.connections += 1
        self._open.add(connection)
        self.active += 1
        try:
            await connection.serve()
        except (OSError, EOFError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self.active -= 1
            self._open.discard(connection)
            connection.close()

    def current(self) -> Clip:
        """What is played now."""
        name, argument = self._fault
        if name in ("resize", "codec") and time.monotonic() >= self.since + float(argument):
            assert self.alternate is not None
            return self.alternate
        return self.clip

    def scheme(self) -> str | None:
        """How a client has to log in, None where it need not."""
        if self._fault[0] == "unauthorized":
            return self._fault[1]
        return self._login[2] if self._login[0] else None

    def admits(self, method: str, header: str) -> bool:
        """Whether the `Authorization` header is the right one."""
        user, password, scheme = self._login
        if self._fault[0] == "unauthorized":
            return False
        if not user:
            return True
        if scheme == "basic":
            import base64

            return header == "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        told = dict(re.findall(r'(\w+)="?([^",]*)"?', header))

        def md5(text: str) -> str:
            return hashlib.md5(text.encode()).hexdigest()  # noqa: S324 - RFC 2617, as cameras do it

        secret = md5(f"{user}:{_REALM}:{password}")
        asked = md5(f"{method}:{told.get('uri', '')}")
        return header.startswith("Digest") and told.get("response") == md5(f"{secret}:{_NONCE}:{asked}")


class _Connection:
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
        await self._reader.read()  # until the client goes away

    async def _answer(self, method: str, headers: dict[str, str]) -> bool:
        """Answers one request; False where the connection ends with it."""
        camera, status, extra, body = self._camera, "200 OK", "", ""
        name, argument = camera.fault
        scheme = camera.scheme() if method in ("DESCRIBE", "SETUP", "PLAY") else None
        if scheme is not None and not camera.admits(method, headers.get("authorization", "")):
            nonce = f', nonce="{_NONCE}"' if scheme == "digest" else ""
            status, extra = "401 Unauthorized", f'WWW-Authenticate: {scheme.title()} realm="{_REALM}"{nonce}\r\n'
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
                await _Player(self, self._camera).run()
        finally:
            self.abort()

    def write(self, data: bytes) -> None:
        """To the TCP connection; a few bytes at a time where the fault is `drip`."""
        name, argument = self._camera.fault
        step = int(argument) if name == "drip" else len(data) or 1
        for at in range(0, len(data), step):
            self._writer.write(data[at : at + step])

    async def send(self, channel: int, data: bytes) -> None:
        """One RTP (channel 0) or RTCP (1) packet, the way the client asked for."""
        if self._sockets:
            with contextlib.suppress(ConnectionError, BlockingIOError):
                self._sockets[channel].send(data)
            return
        self.write(b"$" + struct.pack(">BH", channel, len(data)) + data)
        await self._writer.drain()
        if self._writer.transport.is_closing():
            raise ConnectionResetError


class _Player:
    """One session's pictures, packets and sender reports."""

    def __init__(self, connection: _Connection, camera: FakeCamera) -> None:
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
        origin, ticks = time.monotonic(), 0.0
        while True:
            name, argument = camera.fault
            if camera.current() is not clip:
                ticks += 0 if index == 0 else clip.pictures[index - 1].due + CLOCK / clip.fps
                origin, clip, index = time.monotonic(), camera.current(), 0
            slow = (2.0 if name == "half_rate" else 1.0) / camera.speed
            picture = clip.pictures[index]
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
        for k, payload in enumerate(picture.payloads):
            head = struct.pack(">BBHII", 0x80, 96 | (0x80 if k == last else 0), self._sequence, ticks, self._ssrc)
            self._sequence = (self._sequence + 1) & 0xFFFF
            self._packets += 1
            self._octets += len(payload)
            await self._packet(head, payload)

    async def _packet(self, head: bytes, payload: bytes) -> None:
        camera = self._camera
        name, argument = camera.fault
        chance, packets = camera.random.random(), camera.packets
        hit = name in ("loss", "reorder", "truncate", "flip") and chance < float(argument)
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


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("clip", nargs="?", help="H.264 or H.265 video")
    options.add_argument("--fault", default="none", metavar="NAME[:ARG]")
    options.add_argument("--port", type=int, default=0)
    options.add_argument("--alternate", help="the other clip of the faults resize and codec")
    options.add_argument("--user", default="")
    options.add_argument("--password", default="")
    options.add_argument("--basic", action="store_true", help="Basic instead of Digest")
    options.add_argument("--wall-offset", type=float, default=0.0, help="seconds the camera's wall clock is ahead")
    options.add_argument("--list", action="store_true", help="lists the faults")
    args = options.parse_args()
    if args.list or not args.clip:
        for name, (default, text) in FAULTS.items():
            print(f"{name + (':' + default if default else ''):22}{text}")
        return
    try:
        camera = FakeCamera(
            Clip(args.clip), args.fault, port=args.port, alternate=Clip(args.alternate) if args.alternate else None,
            user=args.user, password=args.password, scheme="basic" if args.basic else "digest",
            wall=lambda true: true + args.wall_offset,
        )  # fmt: skip
    except (ValueError, OSError) as error:
        options.error(str(error))
    with camera, contextlib.suppress(KeyboardInterrupt):
        print(camera.url, flush=True)
        for line in sys.stdin:
            try:
                camera.set(line.strip() or "none")
            except ValueError as error:
                print(error, file=sys.stderr)
        threading.Event().wait()


if __name__ == "__main__":
    main()
