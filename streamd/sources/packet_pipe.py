"""Carries compressed packets from a decoder process to the packet ring of the daemon.

A stream socket of its own beside the one for pictures: what the child has written before it died is still read.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from typing import NamedTuple

from streamd.flow.packets import PacketHead, PacketSink, SoundHead
from streamd.flow.threads import NamedThread

HEAD, PACKET, REFUSED = b"H", b"P", b"R"
_FIXED = struct.Struct("=cI")
"""Kind; bytes that follow."""
_PACKET = struct.Struct("=Bqqqqq")
"""Flags; pts, dts, duration, captured, wall."""
_KEY, _HAS_PTS, _HAS_DTS, _SOUND = 1, 2, 4, 8
LARGEST = 64 << 20
"""Bytes of a message; a larger one is not believed."""
_BUFFER = 1 << 20
_LIMIT = 1 << 62
"""No time stamp is beyond it."""
_JOIN_S = 1.0


class _Description(NamedTuple):
    """A `PacketHead` without its data."""

    codec: str
    width: int
    height: int
    numerator: int
    denominator: int
    container: str
    live: bool
    changed: bool
    sound: tuple[str, int, int] | None
    """Codec and time base of the sound."""
    bytes: int
    """Of the head's data; those of the sound's follow."""


class PacketSender:
    """The child's end, used as the ring itself. Waits for the daemon if its reading thread does not keep up.

    Args:
        end: the socket.
    """

    on = True

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)

    def begin(self, head: PacketHead) -> None:
        """See `PacketSink.begin`."""
        size, base = (head.width, head.height), head.time_base
        sound = (head.sound.codec, *head.sound.time_base) if head.sound is not None else None
        told = _Description(
            head.codec, *size, *base, head.container, head.live, head.changed, sound, len(head.data)
        )  # fmt: skip
        self._send(HEAD, json.dumps(told).encode() + b"\n", head.data + (head.sound.data if head.sound else b""))

    def put(
        self, data: bytes, pts: int | None, dts: int | None, duration: int, key: bool, captured_ns: int, wall_ns: int
    ) -> None:
        """See `PacketSink.put`."""
        flags = _KEY if key else 0
        if pts is not None and abs(pts) < _LIMIT:
            flags |= _HAS_PTS
        if dts is not None and abs(dts) < _LIMIT:
            flags |= _HAS_DTS
        stamps = (pts or 0) if flags & _HAS_PTS else 0, (dts or 0) if flags & _HAS_DTS else 0
        length = duration if 0 <= duration < _LIMIT else 0
        self._send(PACKET, _PACKET.pack(flags, *stamps, length, captured_ns, wall_ns), data)

    def put_sound(self, data: bytes, pts: int, duration: int, captured_ns: int, wall_ns: int) -> None:
        """See `PacketSink.put_sound`."""
        if abs(pts) < _LIMIT and 0 <= duration < _LIMIT:
            self._send(PACKET, _PACKET.pack(_SOUND, pts, 0, duration, captured_ns, wall_ns), data)

    def refuse(self, why: str) -> None:
        """See `PacketSink.refuse`."""
        self._send(REFUSED, why.encode(), b"")

    def _send(self, kind: bytes, head: bytes, data: bytes) -> None:
        if self.on:
            try:
                self._socket.sendall(_FIXED.pack(kind, len(head) + len(data)) + head + data)
            except OSError:
                self.on = False  # the daemon has gone, or wants no more


class PacketReceiver:
    """The daemon's end: a thread that reads until the child ends.

    Args:
        stream: its id.
        into: the ring.
    """

    def __init__(self, stream: str, into: PacketSink) -> None:
        self._ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._into = into
        self._thread = NamedThread(self._run, f"packets-{stream}")

    def start(self) -> None:
        """The child has been given `theirs`, which is closed here."""
        self.theirs.close()
        self._thread.start()

    def close(self) -> None:
        """After the end of the child: what it has written is still read, for a moment."""
        self.theirs.close()
        if self._thread.ident is not None:
            self._thread.join(_JOIN_S)
            with contextlib.suppress(OSError):
                self._ours.shutdown(socket.SHUT_RDWR)
            self._thread.join(_JOIN_S)
        self._ours.close()

    def _run(self) -> None:
        with contextlib.suppress(OSError, EOFError, ValueError, struct.error, UnicodeDecodeError):
            while True:
                kind, size = _FIXED.unpack(self._read(_FIXED.size))
                if size > LARGEST:
                    return
                self._take(kind, self._read(size))

    def _take(self, kind: bytes, body: bytes) -> None:
        if kind == PACKET:
            flags, pts, dts, duration, captured_ns, wall_ns = _PACKET.unpack_from(body)
            if flags & _SOUND:
                self._into.put_sound(body[_PACKET.size :], pts, duration, captured_ns, wall_ns)
                return
            self._into.put(
                body[_PACKET.size :], pts if flags & _HAS_PTS else None, dts if flags & _HAS_DTS else None,
                duration, bool(flags & _KEY), captured_ns, wall_ns,
            )  # fmt: skip
        elif kind == HEAD:
            told, _, data = body.partition(b"\n")
            self._into.begin(_head(_Description(*json.loads(told)), data))
        elif kind == REFUSED:
            self._into.refuse(body[:1000].decode(errors="replace"))

    def _read(self, size: int) -> bytes:
        data = bytearray(size)
        view, got = memoryview(data), 0
        while got < size:
            count = self._ours.recv_into(view[got:])
            if not count:
                raise EOFError
            got += count
        return bytes(data)


def _head(told: _Description, data: bytes) -> PacketHead:
    base = int(told.numerator), int(told.denominator)
    sound = None
    if told.sound is not None:
        codec, numerator, denominator = told.sound
        sound = SoundHead(str(codec), (int(numerator), int(denominator)), data[told.bytes :])
    if min(base) <= 0 or (sound is not None and min(sound.time_base) <= 0):
        raise ValueError("no time base")
    return PacketHead(
        str(told.codec), int(told.width), int(told.height), base, str(told.container), data[: told.bytes],
        bool(told.live), bool(told.changed), sound,
    )  # fmt: skip
