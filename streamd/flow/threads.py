"""Threads with names in the operating system: `top -H` shows which stage or stream uses the CPU."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable

_PR_SET_NAME = 15


class NamedThread(threading.Thread):
    """A daemon thread whose name is also set in the kernel, cut to 15 bytes. Python 3.14 and later do this themselves.

    Args:
        target: what it runs.
        name: name of the thread.
    """

    def __init__(self, target: Callable[[], None], name: str) -> None:
        super().__init__(target=target, name=name, daemon=True)

    def run(self) -> None:
        """Sets the kernel's name, then runs the target."""
        if sys.version_info < (3, 14) and sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_NAME, self.name.encode()[:15], 0, 0, 0)
        super().run()
