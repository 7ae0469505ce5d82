"""Writes log lines to standard error without ever waiting for whoever reads it.

A pipe that is held open and not read fills up after 64 KiB; a write to it then waits for ever, and with it whatever
thread had something to say. So pipes and terminals are opened once more, for this process alone (the flag is the
description's, which is shared with the parent and its other children), and set not to block; sockets are written to
with MSG_DONTWAIT. What does not fit waits in memory up to a limit; beyond it, lines are lost and counted.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import stat
import threading
import time
from collections import deque
from typing import TextIO

MAX_BACKLOG = 1 << 20
"""Bytes that wait for the reader."""

_lost = 0


def lines_lost() -> int:
    """Log lines that nobody took, so far."""
    return _lost


class Outlet:
    """Takes whole lines. Any thread; never waits, never raises.

    Args:
        out: a stream; one without a descriptor (a test's) is written to as it is.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._lock = threading.Lock()
        self._backlog: deque[bytes] = deque()
        self._waiting = 0
        """Bytes in the backlog."""
        self._unsaid = 0
        """Lines lost since the last one that was written."""
        self._thread: threading.Thread | None = None
        self._descriptor: int | None = None
        self._socket: socket.socket | None = None
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self._reopen(out.fileno())

    def _reopen(self, descriptor: int) -> None:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISSOCK(mode):
            self._socket = socket.socket(fileno=os.dup(descriptor))
            self._descriptor = self._socket.fileno()
        elif stat.S_ISFIFO(mode) or (stat.S_ISCHR(mode) and os.isatty(descriptor)):
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            self._descriptor = os.open(f"/proc/self/fd/{descriptor}", flags)

    def write(self, text: str) -> None:
        """Writes `text`, which ends a line, or keeps it for later, or loses it."""
        global _lost
        if self._descriptor is None:
            try:
                self._out.write(text)
            except (OSError, ValueError):  # a file on a full disk
                _lost += 1
            return
        data = text.encode("utf-8", "backslashreplace")
        with self._lock:
            if self._waiting:
                self._keep(data)
                return
            rest = self._put(data)
            if rest:
                self._keep(rest)

    def flush(self) -> None:
        """Passes on what a buffered stream holds."""
        if self._descriptor is None:
            with contextlib.suppress(OSError, ValueError):
                self._out.flush()

    def drain(self, timeout: float) -> None:
        """Gives the reader so many seconds to take what waits: before the process ends."""
        deadline = time.monotonic() + timeout
        while self._waiting and time.monotonic() < deadline:
            self._pass_on(min(0.05, timeout))

    def _keep(self, data: bytes) -> None:
        """Holds the lock."""
        global _lost
        if self._waiting + len(data) > MAX_BACKLOG:
            _lost += 1
            self._unsaid += 1
            return
        self._backlog.append(data)
        self._waiting += len(data)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="log", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        """Exists from the first line that did not fit until all is written."""
        while True:
            self._pass_on(1.0)
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return

    def _pass_on(self, timeout: float) -> None:
        assert self._descriptor is not None
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        poll.poll(timeout * 1000)
        with self._lock:
            while self._backlog:
                # Counted as waiting until it is written: drain looks without the lock.
                data = self._backlog[0]
                rest = self._put(data)
                if rest:
                    self._backlog[0] = rest
                else:
                    self._backlog.popleft()
                self._waiting -= len(data) - len(rest)
                if rest:
                    return
            if self._unsaid:
                lost, self._unsaid = self._unsaid, 0
                rest = self._put(f'{{"event": "log lines lost", "level": "warning", "lines": {lost}}}\n'.encode())
                if rest:
                    self._backlog.append(rest)
                    self._waiting += len(rest)

    def _put(self, data: bytes) -> bytes:
        """Writes what can be written now; returns the rest, of which nothing where the reader has gone."""
        global _lost
        assert self._descriptor is not None
        while data:
            try:
                if self._socket is not None:
                    written = self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                else:
                    written = os.write(self._descriptor, data)
            except BlockingIOError:
                return data
            except OSError:
                _lost += 1
                return b""
            data = data[written:]
        return b""
