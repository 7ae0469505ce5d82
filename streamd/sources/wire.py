"""Whether a camera whose video has stopped still sends data: the kernel knows when the connection last received any.

Nothing else does: FFmpeg consumes sender reports silently. This works for TCP (RTSP interleaved) only.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
from collections.abc import Iterator

from streamd.security.address import host_of

_TCPI_LAST_DATA_RECV = struct.Struct("=52xI")
"""`struct tcp_info` of Linux: milliseconds since data was received."""
_MARGIN_S = 0.3
"""A response that arrived together with the last picture is no sign of life."""


def _connections(addresses: set[str], port: int) -> Iterator[socket.socket]:
    """This process's TCP connections to the camera."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as found:
                if found.family not in (socket.AF_INET, socket.AF_INET6) or found.type != socket.SOCK_STREAM:
                    continue
                if found.getpeername()[1] == port and found.getpeername()[0] in addresses:
                    yield found


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
        for connection in _connections(addresses, port):
            told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCPI_LAST_DATA_RECV.size)
            ages.append(_TCPI_LAST_DATA_RECV.unpack(told)[0] / 1000)
    except (OSError, ValueError, struct.error):
        return False
    return bool(ages) and max(ages) < silence_s - _MARGIN_S
