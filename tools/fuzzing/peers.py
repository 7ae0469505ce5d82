"""Peers that complete the handshake and then send arbitrary data."""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path

from fuzzing.target import Target
from fuzzing.wires import _GREETING, _READY, Zmtp

_SETTLED_S = 20.0
_OPERATIONS = 40
_LONG = 0x2


def _frame(body: bytes, flags: int = 0) -> bytes:
    if len(body) < 256:
        return bytes((flags, len(body))) + body
    return bytes((flags | _LONG,)) + len(body).to_bytes(8, "big") + body


class Peers(Zmtp):
    """A program for a peer: an operation, the length of its argument, the argument; and so on.

    s and c subscribe and cancel, p is a heartbeat, m a part of a message without an end, u one whole message, r repeats
    what was sent last a hundred times, w waits, x hangs up and connects again, anything else is sent as it is.
    """

    name = "peers"
    limit_s = 40.0
    what = "a ZeroMQ peer after its handshake: subscriptions, heartbeats, endless messages; its memory is given back"
    tokens = (
        b"s\x00",
        b"s\x09streamd/1",
        b"c\x09streamd/1",
        b"p\x07\0\1context",
        b"m\xff" + b"x" * 255,
        b"u\x02\2x",
        b"r\x00",
        b"w\x00",
        b"x\x00",
        b"s\x01a" + b"r\x00" * 4,
        b"!\x09\x02\xff\xff\xff\xff\xff\xff\xff\xff",
        b"!\x03\x00\x01\x02",
        b"!\x0c\x04\x0a\x09SUBSCRIBE",
        b"!\x09\x04\x07\x06CANCEL",
    )

    @classmethod
    def seeds(cls, folder: Path) -> list[bytes]:
        return [
            b"s\x12streamd/1/a/status" + b"w\x00" + b"c\x12streamd/1/a/status",
            b"s\x01ap\x05\0\0abcr\x00x\x00s\x01b",
            b"m\x10" + b"y" * 16 + b"r\x00r\x00w\x00",
            b"u\x03\x05abs\x00c\x00",
        ]

    def open(self) -> None:
        super().open()
        self._count = 0

    def _connect(self) -> socket.socket | None:
        peer = socket.create_connection(("127.0.0.1", self._publisher.port), 5)
        peer.settimeout(5)
        peer.sendall(_GREETING + _READY)
        answer = b""
        while len(answer) < 66 or len(answer) < 66 + answer[65]:
            piece = peer.recv(4096)
            if not piece:
                peer.close()
                return None
            answer += piece
        return peer

    def run(self, data: bytes) -> None:
        peer = None
        with contextlib.suppress(OSError):
            peer = self._connect()
            sent = b""
            for _ in range(_OPERATIONS):
                if not data or peer is None:
                    break
                operation, size = data[:1], data[1] if len(data) > 1 else 0
                argument, data = data[2 : 2 + size], data[2 + size :]
                if operation == b"x":
                    peer.close()
                    peer = self._connect()
                elif operation == b"w":
                    peer.settimeout(0.02)
                    with contextlib.suppress(TimeoutError):
                        peer.recv(65536)
                    peer.settimeout(5)
                else:
                    sent = self._bytes(operation, argument) if operation != b"r" else sent * 100
                    sent = sent[: 1 << 20]
                    peer.sendall(sent)
        if peer is not None:
            peer.close()
        self._received(5)
        self._count += 1
        if self._count % 50 == 0:
            self._alone()

    def _bytes(self, operation: bytes, argument: bytes) -> bytes:
        if operation == b"s":
            return _frame(b"\x01" + argument)
        if operation == b"c":
            return _frame(b"\x00" + argument)
        if operation == b"p":
            return _frame(b"\x04PING" + argument, 0x4)
        if operation in b"mu":
            return _frame(argument, 0x1 if operation == b"m" else 0)
        return argument

    def _alone(self) -> None:
        """Checks that no state of disconnected peers remains."""
        peers = self._publisher._sink._peers  # type: ignore[attr-defined]
        deadline = time.monotonic() + _SETTLED_S
        while True:
            left = list(peers._peers.values())
            if len(left) == 1 and peers._all_topic_bytes == sum(p.topic_bytes for p in left):
                return
            assert time.monotonic() < deadline, f"{len(left)} peers, {peers._all_topic_bytes} bytes of topics are left"
            self._received(5)
            time.sleep(0.01)


TARGETS: tuple[type[Target], ...] = (Peers,)
