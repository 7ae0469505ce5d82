"""An answer that is expensive to make, shared by all who ask at about the same time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable

LEAST_S = 0.4
"""Answers are this old at most, unless making them takes long."""
MOST_SHARE = 0.05
"""Of one core's time: an answer that took 100 ms of it is given for 2 s."""
MOST_S = 5.0
"""No answer is older, whatever it takes to make one."""


class SharedAnswer:
    """Makes an answer when it is asked for, and gives the same one to all who ask soon after. Any thread.

    Twelve clients in a loop would otherwise take a third of the interpreter's time from the frames.

    Args:
        clock: monotonic seconds.
        work: seconds of a core that the calling thread has used. On a busy machine an answer takes far longer to make
            than it costs.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, work: Callable[[], float] = time.thread_time
    ) -> None:
        self._clock, self._work = clock, work
        self._lock = threading.Lock()
        self._kept: dict[Hashable, tuple[float, bytes]] = {}
        """By form: until when it is good, and the answer."""

    def get(self, form: Hashable, make: Callable[[], bytes]) -> bytes:
        """The answer in `form`, of which there must be few: a kept one, or a new one of `make`."""
        with self._lock:
            began = self._clock()
            kept = self._kept.get(form)
            if kept is not None and began < kept[0]:
                return kept[1]
            began = self._work()
            made = make()
            good_for = max(LEAST_S, (self._work() - began) / MOST_SHARE)
            self._kept[form] = self._clock() + min(good_for, MOST_S), made
            return made
