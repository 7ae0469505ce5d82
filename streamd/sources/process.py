"""A stream decoded in its own process, so that a crash, hang or leak stays confined to it.

The child (`streamd.sources.decoder`) runs the same `AvSource` and passes decoded pictures in shared memory. If no
buffer is free it waits, as a thread would at a full ring.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from pydantic import TypeAdapter

from streamd.errors import SourceError
from streamd.flow.contracts import SourceInfo
from streamd.flow.packets import PacketSink
from streamd.flow.settings import StreamSettings
from streamd.security.redact import redact
from streamd.security.trust import is_working_directory
from streamd.sources.admission import PROCESS_S, cpu_gate
from streamd.sources.av_errors import describe
from streamd.sources.clock import StreamClock
from streamd.sources.packet_pipe import PacketReceiver
from streamd.sources.shared import (
    BEAT,
    BEGINS,
    CAMERA_CLOCK,
    CODEC,
    COUNTERS,
    END,
    ERROR,
    FRAME,
    GRACE_S,
    HAS_PTS,
    LARGEST_MESSAGE,
    LARGEST_PICTURE,
    NEW_RATE,
    PLACE,
    QUARANTINED,
    RATE,
    SHAPE,
    Channel,
    Failure,
    Memory,
    Shape,
)
from streamd.types import Box, Frame, rotated_size

if TYPE_CHECKING:
    from streamd.sources.av import AvStreamSettings

_T = TypeVar("_T")
_INFO, _SHAPE, _FAILURE = TypeAdapter(SourceInfo), TypeAdapter(Shape), TypeAdapter(Failure)

START_LIMIT_S = 30.0
"""Longest time until a new process sends its first message: imports from a slow disk."""
SILENCE_LIMIT_S = 5.0
"""A process sends a heartbeat every half second; one that is silent for this long hangs or was stopped."""
POLL_S = 0.5
"""How soon a waiting call notices that the source was closed."""
EXTRA_BUFFERS = 3
"""One being written by the child, one in transit, one waiting for the ring."""

_ENVIRONMENT = (
    "PATH", "HOME", "LANG", "LC_", "TZ", "TMPDIR", "LD_", "PYTHON", "VIRTUAL_ENV", "SSL_CERT_", "MALLOC_", "GLIBC_",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
)  # fmt: skip
"""Environment variables that a child inherits, by prefix: it must not see the passwords of other cameras."""


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name.upper().startswith(_ENVIRONMENT)}
    if not is_working_directory(Path(__file__).parents[2]):
        kept["PYTHONSAFEPATH"] = "1"  # -m would search the working directory for modules first
    return kept


class ProcessSource:
    """See `streamd.sources.Source`. A hanging child is killed, so that every call returns in time.

    Args:
        settings: the stream.
        held: pictures that may be in use outside the ring at the same time.
        packets: takes the compressed packets; None where nobody wants them.
    """

    def __init__(self, settings: AvStreamSettings, *, held: int, packets: PacketSink | None = None) -> None:
        self._settings = settings
        self._packets = PacketReceiver(settings.id, packets) if packets is not None else None
        self._buffers = settings.ring + held + EXTRA_BUFFERS
        crop = settings.crop
        self._roi = Box(crop.x, crop.y, crop.width, crop.height) if crop else None
        self._closed = threading.Event()
        self._busy = False
        """True while `open` or `frames` is running: then that call ends the child, not `close`."""
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._message = bytearray(LARGEST_MESSAGE)
        self._patience_s = START_LIMIT_S
        """How long the child may be silent."""
        self._unread = 0
        """Frames that the child has sent, and nobody takes any more."""
        self.corrupt = self.skipped = self.lost = self.overtaken = self.discarded = 0
        self.behind_s: float | None = None
        self.codec = ""
        self.deadline = math.inf
        self.clock = StreamClock()

    @property
    def pid(self) -> int | None:
        """The child's process id; None before `open`."""
        return self._process.pid if self._process is not None else None

    def open(self) -> SourceInfo:
        """See `Source.open`."""
        self._busy = True
        opened = False
        ticket = cpu_gate().enter(self._closed, self._settings.id, PROCESS_S)
        try:
            self._start()
            kind, body = self._receive()
            ticket.leave()
            self._patience_s = SILENCE_LIMIT_S
            while kind == BEAT and not self._closed.is_set():
                kind, body = self._receive()
            if not kind or self._closed.is_set():
                raise SourceError("disconnected", f"stream {self._settings.id}: closed while opening")
            info = self._understood(_INFO, body)
            opened = True
            return info
        finally:
            ticket.leave()
            if not opened or self._closed.is_set():
                self._end(patient=True)
            self._busy = False

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel = Channel(ours)
        with theirs:
            # Room for the return of every buffer, but only for the six pictures that the minimum size holds: a stall
            # here should delay the child's next read rather than end in a burst that the ring has to drop.
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "streamd.sources.decoder"],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    env=_environment(),
                    start_new_session=True,  # Ctrl-C in a terminal is meant for the daemon
                )
            except OSError as error:
                message = f"stream {self._settings.id}: the decoder process could not be started: {error.strerror}"
                raise SourceError("decoder", message) from error
        # The kernel's own timeout saves a system call per message.
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", int(POLL_S), int(POLL_S % 1 * 1e6)))
        with contextlib.suppress(OSError):  # it has died: receiving will tell how
            descriptors = [self._packets.theirs.fileno()] if self._packets is not None else []
            socket.send_fds(ours, [self._settings.model_dump_json().encode()], descriptors)
        if self._packets is not None:
            self._packets.start()

    def _receive(self) -> tuple[bytes, memoryview | bytes]:
        """The next message: kind and body, valid until the next call. Empty if the source was closed and none comes.

        Raises:
            SourceError: the child reported one, died, or hangs.
        """
        assert self._channel is not None
        silent_s = 0.0
        while True:
            try:
                size = self._channel.socket.recv_into(self._message)
            except ConnectionResetError:
                continue  # it died with unread data; what it sent before comes now
            except BlockingIOError:
                silent_s += POLL_S
                if silent_s < self._patience_s:
                    continue
                if not self._closed.is_set():
                    raise self._hangs() from None
                size = 0
            except OSError:
                size = 0
            if not size and self._closed.is_set():
                return b"", b""
            if not size:
                raise self._died()
            (
                kind, self.corrupt, self.skipped, self.lost, self.overtaken, discarded, jumps, offset, drift, behind_s,
            ) = COUNTERS.unpack_from(self._message)  # fmt: skip
            self.discarded = discarded + self._unread
            self.behind_s = None if behind_s != behind_s else behind_s
            clock = self.clock
            clock.jumps = jumps
            clock.offset_s = None if offset != offset else offset
            clock.drift = None if drift != drift else drift
            body = memoryview(self._message)[COUNTERS.size : size]
            if kind == ERROR:
                told = self._understood(_FAILURE, body)
                raise SourceError(told.reason, redact(told.message), permanent=told.permanent)
            return kind, body

    def _understood(self, kind: TypeAdapter[_T], body: memoryview | bytes) -> _T:
        """Parses the child's message, which malicious video may have corrupted."""
        try:
            return kind.validate_json(bytes(body))
        except ValueError as error:
            raise self._mad() from error

    def _mad(self) -> SourceError:
        message = f"stream {self._settings.id}: its decoder process sent an invalid message and was terminated"
        return SourceError("decoder_crashed", message)

    def _hangs(self) -> SourceError:
        assert self._process is not None
        self._process.kill()
        message = f"stream {self._settings.id}: its decoder process {self._process.pid} did not respond and was killed"
        return SourceError("stuck", message)

    def _died(self) -> SourceError:
        assert self._process is not None
        try:
            status = self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            return self._hangs()
        how = f"exit status {status}"
        if status < 0:
            with contextlib.suppress(ValueError):
                how = signal.Signals(-status).name
        return SourceError("decoder_crashed", describe(self._settings.url, "decoder_crashed", how))

    def frames(self) -> Generator[Frame, None, None]:
        """See `Source.frames`."""
        self._busy = True
        shape: Shape | None = None
        memory: Memory | None = None
        width = height = number = 0
        kind = BEAT
        try:
            while not self._closed.is_set():
                kind = b""
                kind, body = self._receive()
                if kind == FRAME:
                    if memory is None or shape is None or len(body) != PLACE.size:
                        raise self._mad()
                    yield self._frame(body, memory, shape, width, height)
                elif kind == SHAPE:
                    shape = self._understood(_SHAPE, body)
                    if not shape.sound():
                        raise self._mad()
                    width, height = rotated_size(shape.width, shape.height, shape.rotation)
                    if memory is None or memory.size != shape.offsets[-1]:
                        number += 1
                        memory = self._memory(number, shape)
                elif kind == CODEC:
                    self.codec = bytes(body[:64]).decode("ascii", "replace")
                elif kind in (END, b""):
                    return
        finally:
            if kind not in (END, b""):
                self._settle()
            self._end(patient=True)
            self._busy = False

    def _settle(self) -> None:
        """Reading was ended: counts what the child has sent meanwhile, and lets it count what it has read."""
        if self._channel is None:
            return
        self._tell_end()
        self._patience_s = GRACE_S
        with contextlib.suppress(SourceError):
            while (kind := self._receive()[0]) not in (END, b""):
                if kind == FRAME:
                    self._unread += 1
                    self.discarded += 1

    def _memory(self, number: int, shape: Shape) -> Memory:
        assert self._channel is not None
        size = shape.offsets[-1]
        what = f"{self._settings.url}: a {shape.format} picture of {shape.width} x {shape.height} pixels"
        if size > LARGEST_PICTURE:
            message = f"{what} takes {size} bytes; the limit is {LARGEST_PICTURE}"
            raise SourceError("unsupported", redact(message))
        try:
            return Memory(self._channel, number, size, self._buffers)
        except BrokenPipeError:
            raise self._died() from None
        except OSError as error:
            raise SourceError("internal", redact(f"{what}: no shared memory: {error.strerror}")) from error

    def _frame(self, body: memoryview | bytes, memory: Memory, shape: Shape, width: int, height: int) -> Frame:
        marks, buffer, _, captured_ns, wall_ns, decoded_ns, pts_ns = PLACE.unpack_from(body)
        if buffer >= memory.count:
            raise self._mad()
        return Frame(
            self._settings.id,
            memory.picture(buffer, shape),
            width,
            height,
            captured_ns,
            wall_ns,
            decoded_ns,
            pts_ns if marks & HAS_PTS else None,
            self._roi,
            clock="camera" if marks & CAMERA_CLOCK else "arrival",
            begins=bool(marks & BEGINS),
            quarantined=bool(marks & QUARANTINED),
        )

    def adapt(self, settings: StreamSettings) -> None:
        """See `Source.adapt`."""
        new = cast("AvStreamSettings", settings)
        before, self._settings = self._settings, new
        if (new.max_fps, new.max_behind_ns) == (before.max_fps, before.max_behind_ns):
            return
        channel = self._channel
        if channel is not None:
            with contextlib.suppress(OSError):  # a child that has gone is started again, with these settings
                channel.socket.send(NEW_RATE.pack(RATE, new.max_fps or 0.0, (new.max_behind_ns or 0) / 1e6))

    def close(self) -> None:
        """See `Source.close`."""
        self._closed.set()
        self._patience_s = GRACE_S
        self._tell_end()
        if not self._busy:
            self._end()

    def _tell_end(self, how: int = socket.SHUT_WR) -> None:
        """Makes the child end. What it sends is still received, unless `how` is SHUT_RDWR."""
        channel = self._channel
        if channel is not None:
            with contextlib.suppress(OSError):
                channel.socket.shutdown(how)

    def _end(self, *, patient: bool = False) -> None:
        """Ends the child: closes the socket, waits a moment for it to exit, then kills it.

        Args:
            patient: also wait for a child that survives this in a system call that never returns. The supervisor
                notices by `deadline` and continues without this thread; such processes are limited as threads are.
        """
        self._tell_end(socket.SHUT_RDWR)
        try:
            self._end_child(patient)
        finally:
            if self._packets is not None:
                self._packets.close()

    def _end_child(self, patient: bool) -> None:
        process, self._channel = self._process, None
        if process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S * 1.2)
        if process.returncode is not None:
            return
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
        if patient:
            self.deadline = time.monotonic()
            process.wait()
            self.deadline = math.inf
