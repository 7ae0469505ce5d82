"""Destroys hardware decoders in the background, after their stream has ended.

The driver destroys them one after another, about 28 ms each on an H200: two hundred streams that waited for it would
not drain within their limit. A stopped stream passes its container on instead, and is done.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from typing import TYPE_CHECKING

from streamd.flow.threads import NamedThread

if TYPE_CHECKING:
    from av.container import InputContainer

PATIENCE_S = 1.0


class DeferredClose:
    """Closes containers one after another in its own thread, which ends when none is left. Any thread."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[InputContainer] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._pending = 0

    def close(self, container: InputContainer) -> None:
        """Closes `container` soon."""
        self._queue.put(container)
        with self._changed:
            self._pending += 1
            if self._pending == 1:
                NamedThread(self._run, "close-decoders").start()

    def _run(self) -> None:
        while True:
            container = self._queue.get()
            with contextlib.suppress(Exception):
                container.close()
            del container
            with self._changed:
                self._pending -= 1
                if not self._pending:
                    self._changed.notify_all()
                    return

    def wait(self, deadline: float) -> bool:
        """Waits a moment, at most until `deadline` (monotonic seconds); False if some are still open. A process that
        exits with open ones must not run finalisers."""
        with self._changed:
            timeout = max(0.0, min(PATIENCE_S, deadline - time.monotonic()))
            return self._changed.wait_for(lambda: not self._pending, timeout)


deferred = DeferredClose()
"""Of this process."""
