"""The decoder process of one stream: `python -m streamd.sources.decoder`, started only by `process.ProcessSource`.

Standard input is the socket to the daemon. The stream's settings arrive over it, so that a URL with a password never
appears on a command line. The process ends when the socket closes or the daemon ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import heapq
import json
import math
import mmap
import os
import select
import signal
import socket
import threading
import time
from dataclasses import asdict
from typing import Any

from streamd.errors import SourceError
from streamd.security.redact import redact
from streamd.sources.av import AvStreamSettings
from streamd.sources.av_errors import describe
from streamd.sources.av_source import AvSource
from streamd.sources.packet_pipe import PacketSender
from streamd.sources.shared import (
    BEAT,
    BEAT_S,
    BEGINS,
    CAMERA_CLOCK,
    CODEC,
    COUNTERS,
    END,
    ERROR,
    FRAME,
    FREE,
    FREED,
    GRACE_S,
    HAS_PTS,
    LARGEST_MESSAGE,
    NEW_MEMORY,
    NEW_RATE,
    OPENED,
    PLACE,
    QUARANTINED,
    RATE,
    SHAPE,
    Failure,
    Shape,
)
from streamd.types import Frame

_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15
_LONGEST_TEXT = 4000


class _Gone(Exception):
    """The daemon no longer wants pictures."""


class Decoder:
    """Reads one stream and passes its pictures to the daemon. `run` is one thread, `watch` another.

    Args:
        end: the socket to the daemon.
        settings: the stream.
        packets: socket for compressed packets; None where the daemon does not want them.
    """

    def __init__(self, end: socket.socket, settings: AvStreamSettings, packets: socket.socket | None = None) -> None:
        self._socket = end
        self._settings = settings
        self._source = AvSource(settings, packets=PacketSender(packets) if packets is not None else None, alone=True)
        self._changed = threading.Condition()
        self._gone = False
        self._unsent = 0
        """A frame that nobody took."""
        self._memory = 0
        self._size = 0
        self._map: memoryview | None = None
        self._free: list[int] = []
        self._shape: Shape | None = None
        self._offsets: list[int] = []

    def _send(self, kind: bytes, body: bytes = b"", flags: int = 0) -> None:
        source, clock = self._source, self._source.clock
        offset = math.nan if clock.offset_s is None else clock.offset_s
        drift = math.nan if clock.drift is None else clock.drift
        behind_s = source.behind_s
        head = COUNTERS.pack(
            kind, source.corrupt, source.skipped, source.lost, source.overtaken, source.discarded + self._unsent,
            clock.jumps, offset, drift, math.nan if behind_s is None else behind_s,
        )  # fmt: skip
        try:
            self._socket.send(head + body, flags)
        except BlockingIOError:
            return
        except OSError:
            raise _Gone from None

    def _fail(self, error: SourceError) -> None:
        told = Failure(error.reason, str(error)[:_LONGEST_TEXT], error.permanent)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LARGEST_MESSAGE)  # its buffer was created small
        with contextlib.suppress(_Gone):
            self._send(ERROR, json.dumps(told).encode())

    # ------------------------------------------------------------------------------------------------------- decoding

    def run(self) -> None:
        """Runs from open until the input ends or the daemon wants no more."""
        try:
            self._send(OPENED, json.dumps(asdict(self._source.open())).encode())
            self._hand_over_all()
            self._send(END)
        except SourceError as error:
            self._fail(error)
        except _Gone:
            pass  # it has died
        except Exception as error:  # noqa: BLE001 - the daemon must learn of it, whatever it is
            self._fail(SourceError("internal", redact(f"{type(error).__name__}: {error}")))

    def _hand_over_all(self) -> None:
        with contextlib.closing(self._source.frames()) as frames:
            for frame in frames:
                try:
                    self._hand_over(frame)
                except _Gone:
                    self._unsent = 1
                    return

    def _hand_over(self, frame: Frame) -> None:
        picture = frame.picture
        planes: list[Any] = [(plane.line_size, memoryview(plane)) for plane in picture.native.planes]
        shape = Shape(
            picture.format,
            picture.width,
            picture.height,
            picture.matrix,
            picture.full_range,
            picture.rotation,
            picture.mirrored,
            picture.pixel_aspect,
            tuple((pitch, pixels.nbytes) for pitch, pixels in planes),
        )
        if shape != self._shape:
            self._reshape(shape)
        buffer, into = self._take()
        start = buffer * self._size
        for offset, (_, pixels) in zip(self._offsets, planes, strict=False):
            into[start + offset : start + offset + pixels.nbytes] = pixels
        pts_ns = frame.pts_ns
        marks = CAMERA_CLOCK if frame.clock == "camera" else 0
        if pts_ns is not None and abs(pts_ns) < 1 << 63:  # 292 years: anything more is invalid
            marks |= HAS_PTS
        else:
            pts_ns = 0
        if frame.quarantined:
            marks |= QUARANTINED
        if frame.begins:
            marks |= BEGINS
            self._send(CODEC, self._source.codec.encode())
        # For the daemon, this is the moment at which the picture left the decoder.
        now = time.monotonic_ns()
        times = frame.captured_ns, frame.wall_ns, now, pts_ns
        self._send(FRAME, PLACE.pack(marks, buffer, self._memory, *times))

    def _reshape(self, shape: Shape) -> None:
        size = shape.offsets[-1]
        with self._changed:
            if size != self._size:
                self._map, self._size, self._free = None, size, []
        self._shape, self._offsets = shape, shape.offsets[:-1]
        self._send(SHAPE, json.dumps(shape).encode())

    def _take(self) -> tuple[int, memoryview]:
        """The lowest free buffer of the pool, so that no more pages are touched than needed."""
        with self._changed:
            self._changed.wait_for(lambda: self._gone or (self._map is not None and self._free))
            if self._gone or self._map is None:
                raise _Gone
            return heapq.heappop(self._free), self._map

    # ------------------------------------------------------------------------------------------------------- watching

    def watch(self) -> None:
        """Handles the daemon's messages, sends heartbeats, and ends a process that hangs, leaks or is not wanted."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        due = 0.0
        while True:
            now = time.monotonic()
            if now >= due:
                due = now + BEAT_S
                self._beat(now)
            if poll.poll(max(0.0, due - now) * 1e3) and not self._listen():
                break
        self._source.close()
        with self._changed:
            self._gone = True
            self._changed.notify_all()
        time.sleep(GRACE_S)
        os._exit(1)

    def _listen(self) -> bool:
        """False if the daemon has gone."""
        try:
            message, descriptors, _, _ = socket.recv_fds(self._socket, max(NEW_MEMORY.size, NEW_RATE.size), 1)
        except OSError:
            return False
        if not message:
            return False
        with self._changed:
            if message[:1] == FREE:
                _, buffer, memory = FREED.unpack(message)
                if memory == self._memory and self._map is not None:
                    heapq.heappush(self._free, buffer)
            elif message[:1] == RATE:
                _, max_fps, max_behind_ms = NEW_RATE.unpack(message)
                changed = {"max_fps": max_fps or None, "max_behind_ms": max_behind_ms}
                self._settings = self._settings.model_copy(update=changed)
                self._source.adapt(self._settings)
            else:
                _, self._memory, size, count = NEW_MEMORY.unpack(message)
                if size == self._size:
                    self._map = memoryview(mmap.mmap(descriptors[0], size * count))
                    self._free = list(range(count))
            self._changed.notify_all()
        for descriptor in descriptors:
            os.close(descriptor)
        return True

    def _beat(self, now: float) -> None:
        settings = self._settings
        try:
            if now >= self._source.deadline:
                message = f"stream {settings.id}: a read does not return; its decoder process was terminated"
                self._fail(SourceError("stuck", message))
                os._exit(1)
            limit = settings.max_rss_mb
            if limit is not None and (used := private_mb()) > limit:
                detail = f"{used} MB, more than max_rss_mb: {limit}"
                self._fail(SourceError("decoder_memory", describe(settings.url, "decoder_memory", detail)))
                os._exit(1)
            self._send(BEAT, flags=socket.MSG_DONTWAIT)
        except _Gone:
            pass  # the reading thread reports it, too


def private_mb() -> int:
    """Resident private memory of this process (neither file-backed nor shared), in megabytes."""
    with open("/proc/self/statm") as handle:
        fields = handle.read().split()
    return (int(fields[1]) - int(fields[2])) * mmap.PAGESIZE // 1_000_000


def _take_socket() -> socket.socket:
    """Takes the socket from standard input and replaces it by /dev/null, since FFmpeg can also read `pipe:`."""
    end = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return end


def _first_to_go() -> None:
    """If memory runs out, the kernel should kill a decoder rather than the daemon."""
    try:
        with open("/proc/self/oom_score_adj", "r+") as handle:
            score = int(handle.read())
            handle.seek(0)
            handle.write(str(min(1000, score + 300)))
    except OSError:
        pass


def main() -> None:
    """Serves the daemon over standard input."""
    libc = ctypes.CDLL(None)
    # A Python thread notices that the socket has closed; if that thread hangs, the kernel ends the process.
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # systemd signals all processes: the daemon drains, then ends us
    _first_to_go()
    end = _take_socket()
    told, descriptors, _, _ = socket.recv_fds(end, LARGEST_MESSAGE, 1)
    if not told:
        return
    packets = socket.socket(fileno=descriptors[0]) if descriptors else None
    settings = AvStreamSettings.model_validate_json(told)
    libc.prctl(_PR_SET_NAME, f"dec-{settings.id}".encode()[:15], 0, 0, 0)
    import av  # noqa: F401 - takes the longest, so it happens before the first heartbeat

    decoder = Decoder(end, settings, packets)
    threading.Thread(target=decoder.watch, name="watch", daemon=True).start()
    decoder.run()
    # No finalisers: everything is with the kernel or the daemon.
    os._exit(0)


if __name__ == "__main__":
    main()
