"""What the kernel knows of a camera's connection, and nothing else does. This works for TCP only.

Whether a camera whose video has stopped still sends data: FFmpeg consumes sender reports silently. And whether anything
has arrived that was not read yet.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
import struct
import sys
import termios
from collections.abc import Iterator

from streamd.security.address import host_of

_TCPI_LAST_DATA_RECV = struct.Struct("=52xI")
"""`struct tcp_info` of Linux: milliseconds since data was received."""
_MARGIN_S = 0.3
"""A response that arrived together with the last picture is no sign of life."""


_PORTS = {"rtsp": 554, "rtsps": 322, "rtmp": 1935, "rtmps": 443, "http": 80, "https": 443}


def _connections(addresses: set[str], port: int) -> Iterator[tuple[int, socket.socket]]:
    """This process's TCP connections to the camera: descriptors, and duplicates that are closed afterwards."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as found:
                if found.family not in (socket.AF_INET, socket.AF_INET6) or found.type != socket.SOCK_STREAM:
                    continue
                if found.getpeername()[1] == port and found.getpeername()[0] in addresses:
                    yield int(name), found


class Unread:
    """What has arrived from a camera and was not read yet. For the thread that reads, while the connection is open.

    Several streams of one recorder share an address: then the one with least counts. Another one that nobody reads
    must not seem to be this one, and that this one waits shows otherwise, too.

    Args:
        url: of the camera.
        tcp: it sends over TCP, if the URL alone does not tell.
    """

    def __init__(self, url: str, *, tcp: bool) -> None:
        self._url, self._tcp = url, tcp
        self._found: list[tuple[int, int]] | None = None
        """Descriptor and inode of each connection to the camera; None before they were looked for."""

    def bytes(self) -> int | None:
        """How many; None where it is unknown. Looks for the connection at the first call, which takes milliseconds."""
        if self._found is None:
            self._found = list(self._find())
        least: int | None = None
        for descriptor, inode in self._found:
            with contextlib.suppress(OSError):
                if os.fstat(descriptor).st_ino == inode:
                    told = fcntl.ioctl(descriptor, termios.FIONREAD, b"\0\0\0\0")
                    waiting = int.from_bytes(told, sys.byteorder)
                    least = waiting if least is None else min(least, waiting)
        return least

    def _find(self) -> Iterator[tuple[int, int]]:
        scheme = self._url.partition("://")[0].lower()
        host, port = host_of(self._url)
        port = port or _PORTS.get(scheme, 0)
        if not host or scheme not in _PORTS or (scheme.startswith("rtsp") and not self._tcp):
            return
        with contextlib.suppress(OSError, ValueError):
            addresses = {str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
            for name, connection in _connections(addresses, port):
                yield name, os.fstat(connection.fileno()).st_ino


def heard_since(url: str, silence_s: float) -> bool:
    """True if data arrived from the camera after its video stopped. Call it before the connection is closed.

    Several streams of one recorder share an address: data must have arrived for all of them.

    Args:
        url: rtsp://...
        silence_s: how long there has been no video, in seconds.
    """
    host, port = host_of(url)
    if not url.startswith("rtsp:") or not host:
        return False
    port = port or 554
    try:
        addresses = {str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
        ages = []
        for _, connection in _connections(addresses, port):
            told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCPI_LAST_DATA_RECV.size)
            ages.append(_TCPI_LAST_DATA_RECV.unpack(told)[0] / 1000)
    except (OSError, ValueError, struct.error):
        return False
    return bool(ages) and max(ages) < silence_s - _MARGIN_S
