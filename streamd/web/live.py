"""The newest picture of a stream as a JPEG and as a motion JPEG, for other programs: Home Assistant, VLC, a browser."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Collection, Iterator

from streamd.telemetry.routes import Request, Response
from streamd.web.tap import MAX_FPS, MAX_WIDTH, Passed, Snapshot, Tap

FRESH_S = 1.0
"""A picture is used again for this long: however often it is asked for, one a second is made."""
WAIT_S = 3.0
"""Longest time to wait for a picture."""
HEARTBEAT_S = 5.0
BOUNDARY = "streamd-frame"
_RECORD = struct.Struct("!II")


def jpeg_of(snapshot: Snapshot) -> bytes:
    """The JPEG of a snapshot, whichever process made it; empty if there is none."""
    if not isinstance(snapshot, Passed):
        return snapshot.jpeg()
    head, size = _RECORD.unpack_from(snapshot.record)
    return snapshot.record[_RECORD.size + head : _RECORD.size + head + size]


class Live:
    """Serves /snapshot/STREAM.jpg and /stream/STREAM.mjpg.

    Args:
        tap: source of the pictures.
        known: leaves the names of streams that exist.
    """

    def __init__(self, tap: Tap, known: Callable[[Collection[str]], frozenset[str]]) -> None:
        self._tap, self._known = tap, known
        self._lock = threading.Lock()
        self._last: dict[str, tuple[float, bytes]] = {}
        """By stream: when it was taken (monotonic seconds), and the JPEG."""

    def _stream(self, request: Request, ending: str) -> str | None:
        name = request.path.rsplit("/", 1)[1]
        found = name.removesuffix(ending) if name.endswith(ending) else ""
        return found if found and self._known([found]) else None

    def snapshot(self, request: Request) -> Response:
        """The newest picture, at most a second old if the stream runs. 503 if there is none."""
        stream = self._stream(request, ".jpg")
        if stream is None:
            return Response(b"no such stream; expected /snapshot/STREAM.jpg\n", code=404)
        now = time.monotonic()
        with self._lock:
            taken, jpeg = self._last.get(stream, (0.0, b""))
        if now >= taken + FRESH_S:
            jpeg = self._take(stream)
            if not jpeg:
                headers = {"Retry-After": "2"}
                return Response(b"the stream has no picture now\n", code=503, headers=headers)
            with self._lock:
                self._last[stream] = (time.monotonic(), jpeg)
        return Response(jpeg, "image/jpeg")

    def _take(self, stream: str) -> bytes:
        with self._tap.watch([stream], 1.0, MAX_WIDTH) as viewer:
            for snapshot in viewer.wait(WAIT_S) or ():
                return jpeg_of(snapshot)
        return b""

    def stream(self, request: Request) -> Response:
        """Pictures without end, `fps` a second (5) and `width` pixels wide (1280) at most."""
        stream = self._stream(request, ".mjpg")
        if stream is None:
            return Response(b"no such stream; expected /stream/STREAM.mjpg\n", code=404)
        try:
            fps, width = float(request.query.get("fps", "5")), int(request.query.get("width", str(MAX_WIDTH)))
        except ValueError:
            return Response(b"expected fps=NUMBER and width=PIXELS\n", code=400)
        if not 0 < fps <= MAX_FPS:
            return Response(f"expected fps above 0, at most {MAX_FPS:g}\n".encode(), code=400)
        return Response(self._pictures(stream, fps, width), f"multipart/x-mixed-replace; boundary={BOUNDARY}")

    def _pictures(self, stream: str, fps: float, width: int) -> Iterator[bytes]:
        with self._tap.watch([stream], fps, width) as viewer:
            last = b""
            while (snapshots := viewer.wait(HEARTBEAT_S)) is not None:
                for snapshot in snapshots:
                    last = jpeg_of(snapshot) or last
                if last:  # repeated while nothing comes: it reveals a viewer that has gone
                    head = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(last)}\r\n\r\n"
                    yield head.encode() + last + b"\r\n"
