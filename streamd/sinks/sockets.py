"""What the kernel knows of a connection that another library owns, by its descriptor."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import sys
import termios
from collections.abc import Iterator
from typing import Any

_RECEIVED_AT = 128
"""Offset of tcpi_bytes_received in Linux's struct tcp_info."""
_SO_COOKIE = getattr(socket, "SO_COOKIE", 57)


class Duplicates:
    """Duplicates of connections, one at a time, also where the process has no descriptor left: one is kept for that."""

    def __init__(self) -> None:
        self._spare = -1
        self._renew()

    def _renew(self) -> None:
        if self._spare < 0:
            with contextlib.suppress(OSError):
                self._spare = os.open(os.devnull, os.O_RDONLY)

    @contextlib.contextmanager
    def of(self, descriptor: int) -> Iterator[socket.socket | None]:
        """A duplicate of the descriptor; None if it is no socket (any more)."""
        own = -1
        try:
            try:
                own = socket.dup(descriptor)
            except OSError as error:
                if error.errno != errno.EMFILE or self._spare < 0:
                    raise
                own, self._spare = self._spare, -1
                os.dup2(descriptor, own, inheritable=False)
            found = socket.socket(fileno=own)
        except OSError:
            if own >= 0:
                os.close(own)
            self._renew()
            yield None
            return
        with found:
            yield found
        self._renew()

    def close(self) -> None:
        """Gives the spare descriptor back."""
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1


_getsockopt = ctypes.PyDLL(None).getsockopt
_info = (ctypes.c_uint64 * 32)()
_length = ctypes.c_uint32()


def _told(descriptor: int, level: int, option: int) -> int:
    """How many bytes the kernel has written to `_info` about a socket; 0 if it is none."""
    _length.value = ctypes.sizeof(_info)
    failed = _getsockopt(descriptor, level, option, ctypes.byref(_info), ctypes.byref(_length))
    return 0 if failed else _length.value


def cookie_of(descriptor: int) -> int:
    """The number that the kernel gives to each socket once, whatever descriptor it has; 0 if it is no socket."""
    return _info[0] if _told(descriptor, socket.SOL_SOCKET, _SO_COOKIE) else 0


def received_by(descriptor: int) -> int:
    """Bytes received by a TCP connection; 0 if it is none. A microsecond, where a duplicate takes five."""
    told = _told(descriptor, socket.IPPROTO_TCP, socket.TCP_INFO)
    return _info[_RECEIVED_AT // 8] if told >= _RECEIVED_AT + 8 else 0


def unread_of(descriptor: int) -> int:
    """Bytes that were sent to a connection and not read yet; 0 if it is none."""
    try:
        return int.from_bytes(fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)), sys.byteorder)
    except OSError:
        return 0


def name_of(connection: socket.socket) -> Any:
    """The address of the other side; None once the connection has ended."""
    with contextlib.suppress(OSError):
        return connection.getpeername()
    return None


def is_at(connection: socket.socket, endpoint: str) -> bool:
    """Whether `connection` was accepted at a socket's endpoint, as libzmq writes it; True while that is not known."""
    own = connection.getsockname()
    if isinstance(own, tuple):
        return not endpoint or endpoint.endswith(f":{own[1]}")
    path = own.decode("utf-8", "surrogateescape").replace("\0", "@", 1) if isinstance(own, bytes) else own
    return not endpoint or endpoint == f"ipc://{path}"
