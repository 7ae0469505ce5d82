"""ZeroMQ endpoints: whether they are well-formed, and whether the file of one may be taken."""

from __future__ import annotations

import errno
import os
import re
import socket as sockets
import stat

from streamd.errors import SinkError
from streamd.settings import PORT_PATTERN

EXPECTED = "expected tcp://HOST:PORT or ipc://PATH, and a port from 1 to 65535; an IPv6 address in brackets"
MOST_PATH_BYTES = 107
LONGEST = f"the path of a socket has at most {MOST_PATH_BYTES} bytes; choose a shorter one"
_HOST = r"(?:\[[0-9A-Za-z:.%*]+\]|[^\s:/\[\];]+)"
_TCP = re.compile(rf"tcp://(?:{_HOST}:{PORT_PATTERN};)?{_HOST}:(?P<port>{PORT_PATTERN}|\*)")
_FREE = ("0", "*")


def endpoint_problem(endpoint: str, *, bind: bool) -> str | None:
    """Why a socket cannot bind or connect to `endpoint`, whatever the machine; None if it may.

    Args:
        endpoint: as in a configuration.
        bind: False to connect, for which a free port is none.
    """
    if endpoint.startswith("ipc://"):
        path = endpoint.removeprefix("ipc://")
        if path in ("", "@"):
            return "names no path; expected ipc://PATH"
        return LONGEST if len(os.fsencode(path)) > MOST_PATH_BYTES else None
    found = _TCP.fullmatch(endpoint)
    if found is None:
        return EXPECTED if "://" in endpoint else f"{EXPECTED.partition(';')[0]}, as in tcp://127.0.0.1:5555"
    if not bind and found["port"] in _FREE:
        return "names no port; a free one can only be bound"
    return None


def check_socket_file(path: str) -> None:
    """Checks that no file or process has the path of an ipc:// endpoint: libzmq would replace it without a word.

    Raises:
        SinkError: what has it, and what to do.
    """
    if path.startswith("@"):
        return  # no file: the kernel refuses a name in use
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return  # none, or the error that bind gives
    if not stat.S_ISSOCK(mode):
        raise SinkError(f"zmq sink: cannot bind ipc://{path}: it is not a socket, and would be replaced; remove it, "
                        "or choose another path")  # fmt: skip
    with sockets.socket(sockets.AF_UNIX) as asking:
        asking.setblocking(False)
        try:
            asking.connect(path)
        except ConnectionRefusedError:
            return  # left behind by a process that was killed
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES, errno.EPROTOTYPE):
                return
    raise SinkError(f"zmq sink: cannot bind ipc://{path}: another process uses that address; stop it or choose another "
                    "path")  # fmt: skip
