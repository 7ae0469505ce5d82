"""Structured logs on standard error: readable on a terminal, JSON elsewhere; without credentials, rate-limited."""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from collections.abc import Callable, MutableMapping
from typing import Any, Literal, TextIO

import structlog

from streamd.security.redact import redact
from streamd.settings.plugins import REMEDY, culprit
from streamd.telemetry.outlet import Outlet
from streamd.telemetry.tail import Tail

Event = MutableMapping[str, Any]


class Redactor:
    """Removes credentials from every string of an event, however deep."""

    def clean(self, value: Any) -> Any:
        """`value` without credentials; copies containers."""
        if isinstance(value, str):
            return redact(value)
        if isinstance(value, dict):
            return {self.clean(k): self.clean(v) for k, v in value.items()}
        if isinstance(value, (list, tuple, set, frozenset)):
            return [self.clean(v) for v in value]
        if value is None or isinstance(value, (bool, int, float)):
            return value
        return redact(str(value))

    def __call__(self, logger: Any, method: str, event: Event) -> Event:
        """The structlog processor."""
        for key in list(event):
            event[key] = self.clean(event[key])
        return event


class RateLimit:
    """Passes the first few events of a kind (same stream, sink or stage), then one per period with a count.

    Args:
        burst: events passed at once.
        period_s: seconds per event after that.
    """

    def __init__(self, burst: int = 5, period_s: float = 10.0) -> None:
        self._burst, self._period = burst, period_s
        self._lock = threading.Lock()
        self._seen: dict[tuple[Any, ...], list[float]] = {}

    def __call__(self, logger: Any, method: str, event: Event) -> Event:
        """The structlog processor; drops the event if its allowance is used up."""
        key = (event.get("event"), event.get("stream"), event.get("sink"), event.get("stage"))
        now = time.monotonic()
        with self._lock:
            if len(self._seen) > 4096:
                self._seen.clear()
            # [tokens, time of the last refill, events suppressed]
            state = self._seen.setdefault(key, [float(self._burst), now, 0.0])
            state[0] = min(self._burst, state[0] + (now - state[1]) / self._period)
            state[1] = now
            if state[0] < 1:
                state[2] += 1
                raise structlog.DropEvent
            state[0] -= 1
            held, state[2] = int(state[2]), 0.0
        if held:
            event["held_back"] = held
        return event


class Throttle:
    """Passes one event per period and counts the others, for a log line that says how many. For one thread.

    Args:
        period_s: seconds between two events that pass.
    """

    def __init__(self, period_s: float = 10.0) -> None:
        self._period_s = period_s
        self._passed = -math.inf
        self._held = 0

    def take(self) -> int | None:
        """How many events were held back since the last one that passed; None if this one is held back, too."""
        now = time.monotonic()
        if now - self._passed < self._period_s:
            self._held += 1
            return None
        held, self._held, self._passed = self._held, 0, now
        return held


_everywhere: dict[str, Any] = {}


def bind_everywhere(**fields: Any) -> None:
    """Adds `fields` to every event of this process; contextvars would affect one thread only."""
    _everywhere.update(fields)


def _bound(logger: Any, method: str, event: Event) -> Event:
    event.update(_everywhere)
    return event


def _without_none(logger: Any, method: str, event: Event) -> Event:
    for key in [k for k, v in event.items() if v is None]:
        del event[key]
    return event


def _blamed(logger: Any, method: str, event: Event) -> Event:
    """Says whose code failed if it is another package's: the text of an error rarely does."""
    given = event.get("exc_info")
    if given:
        trace = given.__traceback__ if isinstance(given, BaseException) else None
        if not isinstance(given, BaseException):
            trace = given[2] if isinstance(given, tuple) else sys.exc_info()[2]
        if (package := culprit(trace)) is not None:
            event["package"] = event.get("package") or package
    if event.get("package"):
        event.setdefault("advice", REMEDY)
    return event


recent = Tail()
"""The latest events that were written, without secrets."""
_listener: Callable[[Event], None] | None = None


def listen(listener: Callable[[Event], None] | None) -> None:
    """Also passes every written event, redacted, to a listener, which must be fast; None removes it."""
    global _listener
    _listener = listener


def _tell(logger: Any, method: str, event: Event) -> Event:
    plain = {k: v for k, v in event.items() if not k.startswith("_")}
    recent.add(plain)
    if (told := _listener) is not None:
        told(plain)
    return event


_outlet: Outlet | None = None


def drain(timeout: float = 0.5) -> None:
    """Gives whoever reads the log a moment to take what waits for them: before the process ends."""
    if _outlet is not None:
        _outlet.drain(timeout)


def configure(
    level: Literal["debug", "info", "warning", "error"] = "info",
    style: Literal["auto", "console", "json"] = "auto",
    *,
    stream: TextIO | None = None,
) -> None:
    """Sets up structlog and the standard library's logging, for the whole process.

    Args:
        level: lowest level written.
        style: auto is console on a terminal, JSON otherwise.
        stream: output; standard error by default.
    """
    global _outlet
    out = stream or sys.stderr
    outlet = _outlet = Outlet(out)
    console = style == "console" or (style == "auto" and out.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        _bound,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=not console),
        _without_none,
        _blamed,
        structlog.processors.format_exc_info,
        Redactor(),
        _tell,
    ]
    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=out.isatty()) if console else structlog.processors.JSONRenderer()
    )
    number = getattr(logging, level.upper())
    structlog.configure(
        processors=[RateLimit(), *shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(outlet),  # type: ignore[arg-type]  # all of a file that it uses
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(outlet)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries log from level warning on: their info messages concern themselves.
    root.setLevel(max(number, logging.WARNING))
    # Uncaught exceptions pass the same processors: Python's own traceback would print them unredacted.
    sys.excepthook = _unhandled
    threading.excepthook = lambda a: _unhandled(a.exc_type, a.exc_value, a.exc_traceback, a.thread)
    sys.unraisablehook = lambda a: _unhandled(a.exc_type, a.exc_value, a.exc_traceback)


def _unhandled(kind: Any, error: Any, trace: Any, thread: threading.Thread | None = None) -> None:
    if kind is None or issubclass(kind, SystemExit):
        return
    name = thread.name if thread is not None else None
    structlog.get_logger(__name__).critical("unhandled exception", thread=name, exc_info=(kind, error, trace))
