"""A main loop's dealings with the system: signals ask it to end or to read again, sd_notify tells how it is."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from streamd.runtime.reload import Reread
from streamd.telemetry.notify import Notifier
from streamd.types import StreamStatus

STATUS_S = 1.0
"""The service manager's line of status is renewed this often."""


def _nothing() -> None:
    pass


class Service:
    """What is asked of a main loop from outside, and what the service manager is told. For one thread, but `stop`.

    Args:
        notifier: the service manager; its owner closes it.
        problem: why the watchdog is not to be fed; None where all is well.
        status: the line of status.
        reread: says whether SIGHUP has asked for a reload; installed by the caller.
        wake: called when something was asked for, from any thread and from signal handlers: it must hold no lock.
        at_once: called by the second signal, right before the process leaves; nothing in it may hang.
    """

    def __init__(
        self,
        notifier: Notifier,
        problem: Callable[[], str | None],
        status: Callable[[], str],
        *,
        reread: Reread | None = None,
        wake: Callable[[], None] = _nothing,
        at_once: Callable[[], None] = _nothing,
    ) -> None:
        self.stopping = False
        """True once a drain was asked for."""
        self._notifier = notifier
        self._problem, self._status = problem, status
        self._reread = reread
        if reread is not None:
            reread.wake = wake
        self._wake, self._at_once = wake, at_once
        self._signals = 0
        self._reloading = False
        """The service manager was told that a reload has begun, and waits for its end."""
        self._next_feed = self._next_status = 0.0

    def listen(self) -> None:
        """Listens to SIGTERM and SIGINT: the first asks for a drain, the second ends the process. Main thread only."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _: Any) -> None:
        self._signals += 1
        if self._signals > 1:
            # The second signal means now: nothing that could hang may run any more.
            self._at_once()
            sys.stderr.flush()
            os._exit(128 + number)
        self.stop()

    def stop(self) -> None:
        """Asks for a drain. Any thread, and signal handlers."""
        self.stopping = True
        self._wake()

    def begun(self, status: str | None = None) -> None:
        """Everything runs: the manager is told so, with the line of status or another one in its place."""
        self._notifier.send("READY=1", f"STATUS={self._status() if status is None else status}")

    def beat(self, now: float) -> None:
        """Feeds the watchdog where there is no problem, and renews the status, each when it is due.

        Args:
            now: monotonic seconds.
        """
        feed_s = self._notifier.watchdog_s
        if feed_s is not None and now >= self._next_feed and self._problem() is None:
            self._notifier.send("WATCHDOG=1")
            self._next_feed = now + feed_s / 3
        if now >= self._next_status:
            self._notifier.send(f"STATUS={self._status()}")
            self._next_status = now + STATUS_S

    def reload_asked(self) -> Reread | None:
        """What to read again, once for one or several SIGHUP; the manager is told that a reload has begun."""
        if self._reread is None or not self._reread.asked():
            return None
        # Type=notify-reload: the manager waits for READY=1 and wants to know that it is not an older one.
        self._notifier.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        self._reloading = True
        return self._reread

    def reload_done(self) -> None:
        """No change is under way any more: a manager that was told of a reload is told of its end."""
        if self._reloading:
            self._reloading = False
            self.begun()

    def ending(self) -> None:
        """The drain begins."""
        self._notifier.send("STOPPING=1")


def condition_of(status: StreamStatus) -> str:
    """The state of a stream for people: DEGRADED is a live one that suffers from load."""
    return "DEGRADED" if status.degraded else status.state


def status_line(states: Iterable[str], published: int, refused: str, *more: str) -> str:
    """How a daemon is, for people.

    Args:
        states: of its streams.
        published: frames.
        refused: why the newest configuration was refused; empty where it was not.
        more: what else there is to say.
    """
    found = sorted(states)
    counts = ", ".join(f"{found.count(s)} {s.lower()}" for s in dict.fromkeys(found))
    parts = [counts or "no streams", f"{published} frames published", *more]
    return "; ".join([*parts, f"new configuration rejected: {refused}"] if refused else parts)
