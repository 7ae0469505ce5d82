"""Connects a main loop with the system: signals ask it to end or to reload, and sd_notify reports its state."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from streamd.config import Config, sink_names
from streamd.runtime.reload import Reread
from streamd.telemetry.notify import Notifier
from streamd.types import StreamStatus

STATUS_S = 1.0
"""Interval of updates of the service manager's status line."""
TWICE_S = 0.2
"""A signal that comes again so soon is the same one: `timeout` sends it to the process and to its group."""


def _nothing() -> None:
    pass


class Service:
    """Requests to a main loop, and reports to the service manager. For one thread, except `stop`.

    Args:
        notifier: the service manager; its owner closes it.
        problem: why the watchdog must not be fed; None if all is well.
        status: returns the status line.
        reread: whether SIGHUP has asked for a reload; installed by the caller.
        wake: called at every request, from any thread and from signal handlers: it must hold no lock.
        at_once: called by the second signal, right before the process exits; nothing in it may hang.
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
        """True once a drain was requested."""
        self._notifier = notifier
        self._problem, self._status = problem, status
        self._reread = reread
        if reread is not None:
            reread.wake = wake
        self._wake, self._at_once = wake, at_once
        self._first: tuple[int, float] | None = None
        """The first signal, and when it came, in monotonic seconds."""
        self._reloading = False
        """The service manager was told that a reload has begun, and waits for it to end."""
        self._next_feed = self._next_status = 0.0

    def listen(self) -> None:
        """Installs handlers of SIGTERM and SIGINT: the first signal requests a drain, the second ends the process. The
        same one within `TWICE_S` is no second one. Main thread only."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _: Any) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = number, now
        elif number != self._first[0] or now - self._first[1] > TWICE_S:
            # The second signal means immediately: nothing that could hang may run any more.
            self._at_once()
            with contextlib.suppress(OSError):
                sys.stderr.flush()
            os._exit(128 + number)
        self.stop()

    def stop(self) -> None:
        """Requests a drain. Any thread, and signal handlers."""
        self.stopping = True
        self._wake()

    def begun(self, status: str | None = None) -> None:
        """Tells the manager that everything runs, with the status line or `status` instead."""
        self._notifier.send("READY=1", f"STATUS={self._status() if status is None else status}")

    def beat(self, now: float) -> None:
        """Feeds the watchdog if there is no problem, and updates the status, each when it is due.

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
        """What to read again, once after one or more SIGHUPs; the manager is told that a reload has begun."""
        if self._reread is None or not self._reread.asked():
            return None
        # Type=notify-reload: the manager waits for a READY=1 that is newer than this time.
        self._notifier.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        self._reloading = True
        return self._reread

    def reload_done(self) -> None:
        """Tells a manager that was told of a reload that it has ended."""
        if self._reloading:
            self._reloading = False
            self.begun()

    def ending(self) -> None:
        """Tells the manager that the drain has begun."""
        self._notifier.send("STOPPING=1")


def condition_of(status: StreamStatus) -> str:
    """The state of a stream for display: DEGRADED is a live stream that is degraded by load."""
    return "DEGRADED" if status.degraded else status.state


def outputs_of(config: Config) -> str | None:
    """Every sink with its address, for the log; None without sinks."""
    told = (f"{name} {sink.address}".strip() for name, sink in zip(sink_names(config), config.sinks, strict=True))
    return ", ".join(told) or None


def status_line(states: Iterable[str], published: int, refused: str, *more: str) -> str:
    """A daemon's state in one line, for display.

    Args:
        states: states of its streams.
        published: frames.
        refused: why the latest configuration was rejected; empty if it was not.
        more: additional parts.
    """
    found = sorted(states)
    counts = ", ".join(f"{found.count(s)} {s.lower()}" for s in dict.fromkeys(found))
    parts = [counts or "no streams", f"{published} frames published", *more]
    return "; ".join([*parts, f"new configuration rejected: {refused}"] if refused else parts)
