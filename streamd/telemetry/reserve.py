"""A thread that exists already, for connections for which no further one can be started."""

from __future__ import annotations

import contextlib
import queue
import select
import socket
import threading
from collections.abc import Callable
from typing import Any

ASK_S = 1.0
"""A connection that has sent nothing by then is closed: others wait behind it."""


class ReserveThread:
    """Serves connections one after the other.

    Args:
        serve: serves one connection and closes it; raises nothing.
    """

    def __init__(self, serve: Callable[[Any, Any], None]) -> None:
        self._serve = serve
        self._waiting: queue.SimpleQueue[tuple[Any, Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="http-reserve", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    @property
    def here(self) -> bool:
        """Whether the calling thread is this one."""
        return threading.current_thread() is self._thread

    def take(self, connection: Any, address: Any) -> bool:
        """Queues a connection; False if the thread does not run."""
        if not self._thread.is_alive():
            return False
        self._waiting.put((connection, address))
        return True

    def _run(self) -> None:
        while (taken := self._waiting.get()) is not None:
            connection, address = taken
            with contextlib.suppress(OSError, ValueError):
                asking = select.poll()
                asking.register(connection, select.POLLIN)
                if not asking.poll(ASK_S * 1000):
                    # socket's own method: ssl's would say goodbye. What is read is the end.
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)
            self._serve(connection, address)

    def close(self) -> None:
        """Ends the thread after what it serves. Idempotent."""
        self._waiting.put(None)
        if self._thread.is_alive():
            self._thread.join(5)
