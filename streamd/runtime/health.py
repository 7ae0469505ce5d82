"""What a daemon with workers and one without have in common: health and readiness answers, and closing its outputs."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Protocol

import structlog

from streamd.runtime.eventlog import EventLog
from streamd.security.redact import redact
from streamd.telemetry.http import HttpServer
from streamd.types import StreamStatus
from streamd.web.tap import Tap

log = structlog.get_logger(__name__)

_LEAST_S = 0.2
"""Least time for an output to close, even past the deadline."""


class SinkHealth(Protocol):
    """What the health answer needs of a sink."""

    name: str

    @property
    def problem(self) -> str | None: ...

    @property
    def unreachable(self) -> str | None: ...


class Closable(Protocol):
    """What closing needs of a sink."""

    name: str

    @property
    def package(self) -> str | None: ...

    def close(self, timeout: float) -> bool: ...


def problems_of(sinks: Iterable[SinkHealth]) -> dict[str, str]:
    """Why sinks are not open, by name; empty where all are."""
    return {sink.name: redact(problem) for sink in sinks if (problem := sink.problem) is not None}


def health_of(
    problem: str | None,
    boot_id: str,
    sinks: Iterable[SinkHealth],
    journal: str | None,
    statuses: Iterable[StreamStatus],
    media: str | None = None,
) -> dict[str, Any]:
    """The body of the health answer.

    A sink that is down, a journal that cannot be written and degraded streams are reported, but are no reason to
    restart the daemon: they recover by themselves.

    Args:
        problem: why the watchdog considers the daemon unhealthy; empty if it does not.
        boot_id: identity of the daemon.
        sinks: all of them.
        journal: why the event journal cannot be written.
        statuses: the latest of every stream.
        media: why clips cannot be written.
    """
    body: dict[str, Any] = {"ok": problem is None, "problem": problem, "boot_id": boot_id}
    away = {sink.name: redact(why) for sink in sinks if (why := sink.problem or sink.unreachable) is not None}
    if away:
        body["sinks"] = away
    if journal is not None:
        body["events"] = journal
    if degraded := {s.stream: s.reason for s in statuses if s.degraded}:
        body["degraded"] = degraded
    if media is not None:
        body["media"] = media
    return body


def ready_of(ok: bool, statuses: Iterable[StreamStatus], sinks: Iterable[SinkHealth], **more: Any) -> dict[str, Any]:
    """The body of the readiness answer, whose `ready` decides its HTTP status.

    Args:
        ok: all parts run, a stream was live (or all are over), and the watchdog has no problem.
        statuses: the latest of every stream.
        sinks: all of them; one that is not open makes the daemon not ready.
        more: additional fields of the body.
    """
    states = {s.stream: {"state": s.state, "reason": s.reason} for s in statuses}
    down = problems_of(sinks)
    return {"ready": ok and not down, "streams": states, "sinks": down, **more}


def close_outputs(
    events: EventLog | None, sinks: Iterable[Closable], tap: Tap | None, http: HttpServer | None, deadline: float
) -> bool:
    """Closes all outputs of a daemon, the HTTP port last.

    Args:
        events: event journal; commits waiting events before the sinks close, within half of the remaining time, and
            the sinks' cursors afterwards.
        sinks: share the rest, each at least a moment.
        tap: pictures of the page.
        http: HTTP port.
        deadline: monotonic seconds.

    Returns:
        False if a sink's thread is left running.
    """
    if events is not None:
        events.flush(max(_LEAST_S, (deadline - time.monotonic()) / 2))
    closed = True
    for sink in sinks:
        if not sink.close(max(_LEAST_S, deadline - time.monotonic())):
            closed = False
            log.warning("sink did not close in time", sink=sink.name, package=sink.package)
    if events is not None:
        events.close(max(_LEAST_S, deadline - time.monotonic()))
    if tap is not None:
        tap.close()
    if http is not None:
        http.close()
    return closed
