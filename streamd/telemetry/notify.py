"""Notifies the service manager: READY, STATUS, WATCHDOG and STOPPING over $NOTIFY_SOCKET (sd_notify(3))."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping


class Notifier:
    """Reports our state to systemd; does nothing if not run by systemd.

    Args:
        environment: source of NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        env = os.environ if environment is None else environment
        address = env.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) if address else None
        self.watchdog_s: float | None = None
        """Longest time between two keep-alives in seconds, or None without a watchdog."""
        usec, pid = env.get("WATCHDOG_USEC", ""), env.get("WATCHDOG_PID", "")
        if usec.isdigit() and int(usec) > 0 and pid in ("", str(os.getpid())):
            self.watchdog_s = int(usec) / 1e6

    def send(self, *lines: str) -> None:
        """Sends assignments such as READY=1; never fails, never waits."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                data = "\n".join(lines).encode("utf-8", "backslashreplace")
                self._socket.sendto(data, socket.MSG_DONTWAIT, self._address)

    def close(self) -> None:
        """Closes the socket. Idempotent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
