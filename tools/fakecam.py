#!/usr/bin/env python3
"""A fake RTSP camera that plays a real clip, with fault injection.

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
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from fakecam_session import NONCE, REALM, Connection
from rtp_clip import Clip

FAULTS: dict[str, tuple[str, str]] = {
    "none": ("", "plays the clip in a loop"),
    "refuse": ("", "does not listen; existing connections are cut"),
    "mute": ("", "accepts connections but never sends anything"),
    "hang": ("DESCRIBE", "never answers the request ARG (OPTIONS, DESCRIBE, SETUP or PLAY)"),
    "status": ("404", "answers DESCRIBE with the RTSP status ARG"),
    "unauthorized": ("digest", "refuses every password; ARG is the scheme, basic or digest"),
    "silence": ("2", "stops sending ARG seconds after PLAY"),
    "rtcp_only": ("2", "sends only sender reports from ARG seconds after PLAY"),
    "loss": ("0.02", "loses the fraction ARG of the RTP packets"),
    "reorder": ("0.05", "swaps the fraction ARG of the RTP packets with the next one"),
    "truncate": ("0.02", "truncates the fraction ARG of the RTP packets"),
    "flip": ("0.02", "flips one bit in the fraction ARG of the RTP packets"),
    "forward": ("10", "time stamps jump forward by ARG seconds, every five seconds"),
    "back": ("10", "time stamps jump back by ARG seconds, every five seconds"),
    "repeat": ("0.5", "the fraction ARG of the pictures repeats the previous time stamp"),
    "resize": ("2", "continues with the alternate clip (another size) after ARG seconds"),
    "codec": ("2", "continues with the alternate clip (another codec) after ARG seconds"),
    "no_keyframe": ("", "never sends a key frame"),
    "half_rate": ("", "sends half of the declared frame rate"),
    "burst": ("1", "sends the pictures of ARG seconds at once, then nothing for as long"),
    "drip": ("1", "writes ARG bytes at a time"),
    "disconnect": ("5", "cuts the connection at random, after ARG seconds on average"),
    "hangup": ("10", "closes the connection after ARG pictures"),
}
"""Every fault: the default of its argument, and what it does."""


def parse_fault(text: str) -> tuple[str, str]:
    """`NAME[:ARG]` as name and argument.

    Raises:
        ValueError: no such fault, or an invalid argument.
    """
    name, _, argument = text.partition(":")
    if name not in FAULTS:
        raise ValueError(f"unknown fault {name}; expected one of {', '.join(FAULTS)}")
    argument = argument or FAULTS[name][0]
    if name == "hang":
        argument = argument.upper()
    elif name == "unauthorized" and argument not in ("basic", "digest"):
        raise ValueError(f"fault {name}: {argument} is not a scheme; expected basic or digest")
    elif name != "unauthorized" and argument:
        float(argument)
    return name, argument


class FakeCamera:
    """One camera on its own port. Every connection is a session that plays the clip from its start.

    Args:
        clip: what it plays.
        fault: `NAME[:ARG]` of `FAULTS`.
        port: 0 takes a free one.
        alternate: the other clip of the faults `resize` and `codec`.
        user: required of every client if given.
        password: the same.
        scheme: authentication scheme, basic or digest.
        report_s: seconds between sender reports; 0 sends none.
        wall: the camera's own wall clock, Unix seconds, given the true one. May be replaced while it runs.
        speed: times real time.
        seed: seed of the random numbers.
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
        """TCP connections accepted so far."""
        self.sessions = 0
        """Sessions that reached PLAY."""
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
        self._open: set[Connection] = set()
        # Bound as long as the camera is there, but never listening: nobody else gets the port while it refuses.
        self._held = socket.socket()
        self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._held.bind(("127.0.0.1", port))
        self.port: int = self._held.getsockname()[1]
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
        self._held.close()

    def __enter__(self) -> FakeCamera:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def set(self, fault: str) -> None:
        """Changes the fault, also for current sessions. Any thread.

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

    def cut(self, *, orderly: bool = False) -> None:
        """Cuts every connection once, or closes it as TCP does. Any thread."""

        async def now() -> None:
            for connection in list(self._open):
                (connection.close if orderly else connection.abort)()

        self._call(now())

    def _check_alternate(self) -> None:
        name = self._fault[0]
        if name in ("resize", "codec") and self.alternate is None:
            raise ValueError(f"fault {name}: needs an alternate clip")

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        if self._server is None and self._fault[0] != "refuse":
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, reuse_address=True)

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
        connection = Connection(self, reader, writer)
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
        """The clip that is currently played."""
        name, argument = self._fault
        if name in ("resize", "codec") and time.monotonic() >= self.since + float(argument):
            assert self.alternate is not None
            return self.alternate
        return self.clip

    def scheme(self) -> str | None:
        """How a client must log in; None if it need not."""
        if self._fault[0] == "unauthorized":
            return self._fault[1]
        return self._login[2] if self._login[0] else None

    def admits(self, method: str, header: str) -> bool:
        """Whether the `Authorization` header is correct."""
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

        secret = md5(f"{user}:{REALM}:{password}")
        asked = md5(f"{method}:{told.get('uri', '')}")
        return header.startswith("Digest") and told.get("response") == md5(f"{secret}:{NONCE}:{asked}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("clip", nargs="?", help="H.264 or H.265 video")
    options.add_argument("--fault", default="none", metavar="NAME[:ARG]")
    options.add_argument("--port", type=int, default=0)
    options.add_argument("--alternate", help="the other clip of the faults resize and codec")
    options.add_argument("--user", default="")
    options.add_argument("--password", default="")
    options.add_argument("--basic", action="store_true", help="Basic instead of Digest")
    options.add_argument(
        "--wall-offset", type=float, default=0.0, help="seconds by which the camera's wall clock is ahead"
    )
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
