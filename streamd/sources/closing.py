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
from streamd.sources.hardware import Shelf

if TYPE_CHECKING:
    from av.container import InputContainer

    from streamd.sources.hardware import HardwareDecoder

    Closable = InputContainer | HardwareDecoder

PATIENCE_S = 1.0
FEW = 8
"""More decoders than this are left to the system at the end of the process."""


class DeferredClose:
    """Closes containers and decoders one after another in its own thread, which ends when none is left. Any thread."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Closable] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._held: list[Closable] | None = None
        self._pending = 0

    def close(self, container: Closable) -> None:
        """Closes `container` soon."""
        with self._changed:
            if self._held is not None:
                self._held.append(container)
                return
            self._queue.put(container)
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

    def hold(self) -> None:
        """From now on nothing is closed before `finish`: what is under way on the device would wait behind it."""
        with self._changed:
            self._held = self._held or []

    def finish(self, deadline: float) -> bool:
        """Closes what was held, if it is little, and waits until `deadline` (monotonic seconds) and a moment at most.

        Returns:
            False if some are not closed: a process must then leave without finalisers, and the system frees them.
        """
        shelf.clear()
        with self._changed:
            held, self._held = self._held or [], None
            if len(held) + self._pending > FEW:
                _left.extend(held)
                return False
        for container in held:
            self.close(container)
        del held
        with self._changed:
            timeout = max(0.0, min(PATIENCE_S, deadline - time.monotonic()))
            return self._changed.wait_for(lambda: not self._pending, timeout)


_left: list[Closable] = []
"""Kept to the end of the process: their last reference would destroy them."""
deferred = DeferredClose()
"""Of this process."""
shelf = Shelf(deferred.close)
"""Decoders of this process that wait for their cameras."""
