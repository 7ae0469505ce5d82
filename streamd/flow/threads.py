"""Threads that the operating system knows by name: `top -H` then shows which stage or stream takes the time."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable

_PR_SET_NAME = 15


class NamedThread(threading.Thread):
    """A daemon thread whose name is also the kernel's, cut to its 15 bytes. Python does this itself from 3.14 on.

    Args:
        target: what it runs.
        name: of the thread.
    """

    def __init__(self, target: Callable[[], None], name: str) -> None:
        super().__init__(target=target, name=name, daemon=True)

    def run(self) -> None:
        """Tells the kernel, then runs the target."""
        if sys.version_info < (3, 14) and sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_NAME, self.name.encode()[:15], 0, 0, 0)
        super().run()
