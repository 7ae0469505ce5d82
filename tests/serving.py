"""Servers in a thread of this process, for inputs from a network."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

_S = TypeVar("_S", bound="HttpServing")


class HttpServing:
    """Answers with a handler of its own, on a port of its own, while entered.

    Args:
        handler: its log is left out.
    """

    def __init__(self, handler: Callable[..., http.server.BaseHTTPRequestHandler]) -> None:
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self: _S) -> _S:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Files(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


def files_of(folder: Path) -> HttpServing:
    """The files of a folder, with their lengths; none of them in parts."""
    return HttpServing(partial(_Files, directory=folder))


@contextlib.contextmanager
def udp_of(piece: Callable[[], bytes], pause_s: float = 0.02) -> Iterator[str]:
    """The URL to which a transport stream is sent over UDP, slowly.

    Args:
        piece: what is sent next, whenever all of the piece before was.
        pause_s: between two datagrams.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    over = threading.Event()

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            while True:
                data = piece()
                for at in range(0, len(data), 1316):
                    sender.sendto(data[at : at + 1316], ("127.0.0.1", port))
                    if over.wait(pause_s):
                        return

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield f"udp://127.0.0.1:{port}"
    finally:
        over.set()
        thread.join()
