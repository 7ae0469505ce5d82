"""A peer that speaks ZMTP 3 by hand, to do what no library would."""

from __future__ import annotations

import socket
import time
from typing import Any

GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31)
_READY = b"\x05READY\x0bSocket-Type\0\0\0\x03SUB"


def frame(body: bytes, flags: int = 0) -> bytes:
    """One frame; flag 1 says that another part of the message follows, flag 4 is a command."""
    if len(body) < 256:
        return bytes((flags, len(body))) + body
    return bytes((flags | 2,)) + len(body).to_bytes(8, "big") + body


class RawPeer:
    """A connection to a sink's endpoint.

    Args:
        endpoint: of the sink; of a TCP endpoint only the port matters.
        source: address to connect from (TCP).
        handshake: False: it says nothing.
    """

    def __init__(self, endpoint: str, *, source: str = "127.0.0.1", handshake: bool = True) -> None:
        if endpoint.startswith("ipc://"):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(endpoint.removeprefix("ipc://"))
        else:
            port = int(endpoint.rpartition(":")[2])
            self.socket = socket.create_connection(("127.0.0.1", port), 10, (source, 0))
        self.socket.settimeout(10)
        if handshake:
            self.socket.sendall(GREETING + frame(_READY, 4))
            # libzmq rejects messages that come before its own part of the handshake is sent.
            self._read(len(GREETING))
            self._read(self._read(2)[1])

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.socket.recv(size - len(data))
            if not piece:
                raise ConnectionError("closed during the handshake")
            data += piece
        return data

    def subscribe(self, *topics: bytes, cancel: bool = False) -> None:
        """Sends subscriptions, or cancels them."""
        self.send(b"".join(frame((b"\x00" if cancel else b"\x01") + topic) for topic in topics))

    def send(self, data: bytes) -> None:
        """Raises OSError if the connection was closed."""
        self.socket.sendall(data)

    def closed(self, sink: Any, seconds: float = 10.0) -> bool:
        """Whether the sink closes the connection within `seconds`, while it is polled."""
        self.socket.setblocking(False)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            sink.poll()
            try:
                if not self.socket.recv(65536):
                    return True
            except BlockingIOError:
                time.sleep(0.005)
            except OSError:
                return True
        return False

    def close(self) -> None:
        """Idempotent."""
        self.socket.close()
