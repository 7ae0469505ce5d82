"""sd_notify against a real datagram socket."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from streamd.telemetry.notify import Notifier


def test_lines_arrive_and_the_watchdog_is_read(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "n"))
        manager.settimeout(2)
        notifier = Notifier(
            {"NOTIFY_SOCKET": str(tmp_path / "n"), "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}
        )
        assert notifier.watchdog_s == 3
        notifier.send("READY=1", "STATUS=fine")
        assert manager.recv(100) == b"READY=1\nSTATUS=fine"
        notifier.close()
        notifier.close()
        notifier.send("after closing")


def test_abstract_sockets() -> None:
    name = f"streamd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name)
        manager.settimeout(2)
        Notifier({"NOTIFY_SOCKET": "@" + name}).send("READY=1")
        assert manager.recv(100) == b"READY=1"


def test_nothing_happens_without_a_manager_or_for_another_process() -> None:
    assert Notifier({}).watchdog_s is None
    Notifier({}).send("READY=1")
    assert Notifier({"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}).watchdog_s is None
    Notifier({"NOTIFY_SOCKET": "/nonexistent/socket"}).send("READY=1")
