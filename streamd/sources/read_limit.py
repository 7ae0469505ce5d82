"""The time limit of a read, without the interpreter lock.

While FFmpeg reads from the network, it asks PyAV's interrupt callback whether to give up: around each call to the
socket, which for RTSP over TCP is six times and more an RTP packet, hence a hundred times a picture. Where a time limit
is set, the callback takes the interpreter lock to read the clock. In a process with many cameras each of these may wait
for its turn and wake up another thread.

Without a limit the callback returns at once. So the limit is lifted while reads are short, and one thread sets it
again for a read that has lasted for half of it. PyAV notes when each read begins, so the limit means what it meant.

PyAV has no call for that. Its containers keep both numbers behind the two limits that they were opened with, where
they are found and checked: if they are not there, PyAV's own limit stays as it is.
"""

from __future__ import annotations

import ctypes
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av.container import InputContainer

TICK_S = 0.25
LEAST_S = 4 * TICK_S
"""A shorter limit is never lifted: it would be set again too late."""
_WORD = ctypes.sizeof(ctypes.c_void_p)
_NONE = -1.0
"""What PyAV writes for no limit."""


class ReadLimit:
    """The limit of one container. For the thread that reads, except for `check` and `interrupt`.

    Args:
        container: open, with a time limit, and kept until `end`.
        numbers: PyAV's own: when the read began, monotonic seconds, and the limit in seconds.
    """

    def __init__(self, container: InputContainer, numbers: ctypes.Array[ctypes.c_double]) -> None:
        assert container.read_timeout is not None
        self._container = container
        self._numbers = numbers
        self._limit_s = float(container.read_timeout)
        self.is_set = True
        """Whether the limit may be set: PyAV does so when demuxing begins."""
        _watch.add(self)

    @classmethod
    def of(cls, container: InputContainer, opened_s: float) -> ReadLimit | None:
        """The limit of `container`, whose opening began at `opened_s` (monotonic); None if it cannot be lifted."""
        if container.read_timeout is None or container.read_timeout < LEAST_S:
            return None
        numbers = _numbers(container, opened_s)
        return cls(container, numbers) if numbers is not None else None

    def lift(self) -> None:
        """Lets the reads to come go without a limit until `check`. After a read that took place while `is_set`."""
        self.is_set = False
        self._numbers[1] = _NONE

    def check(self, now: float) -> None:
        """Sets the limit if the read has lasted for half of it. By any one thread. `now`: monotonic seconds."""
        if now - self._numbers[0] > self._limit_s / 2:
            self.is_set = True  # first: `lift` undoes both in the other order
            self._numbers[1] = self._limit_s

    def end(self) -> None:
        """Lets go of the container, which may be closed then. Nothing else may be called afterwards."""
        _watch.remove(self)
        del self._container


def _numbers(container: InputContainer, opened_s: float) -> ctypes.Array[ctypes.c_double] | None:
    """Where `container` keeps when a read began and its limit; None unless that is certain."""
    words = (ctypes.c_size_t * (type(container).__basicsize__ // _WORD)).from_address(id(container))
    limits = id(container.open_timeout), id(container.read_timeout)
    places = [i for i in range(len(words) - 3) if (words[i], words[i + 1]) == limits]
    if len(places) != 1:
        return None
    numbers = (ctypes.c_double * 2).from_address(id(container) + (places[0] + 2) * _WORD)
    # The last that was timed is the search for the input's streams; after it there is no limit.
    return numbers if opened_s <= numbers[0] <= time.monotonic() and numbers[1] == _NONE else None


class _Watch:
    """Checks all limits, in a thread that exists while there are any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._limits: set[ReadLimit] = set()
        self._running = False

    def add(self, limit: ReadLimit) -> None:
        with self._lock:
            self._limits.add(limit)
            if self._running:
                return
            self._running = True
        threading.Thread(target=self._run, name="read-limits", daemon=True).start()

    def remove(self, limit: ReadLimit) -> None:
        with self._lock:
            self._limits.discard(limit)

    def _run(self) -> None:
        while True:
            time.sleep(TICK_S)
            with self._lock:
                if not self._limits:
                    self._running = False
                    return
                now = time.monotonic()
                for limit in self._limits:
                    limit.check(now)


_watch = _Watch()
