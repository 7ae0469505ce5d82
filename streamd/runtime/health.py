"""What a daemon with workers and one without have in common: health and readiness answers, and closing its outputs."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Protocol

import structlog

from streamd.runtime.eventlog import EventLog
from streamd.telemetry.http import HttpServer
from streamd.types import StreamStatus
from streamd.web.tap import Tap

log = structlog.get_logger(__name__)

_LEAST_S = 0.2
"""Time for an output to close, however late it is."""


class SinkHealth(Protocol):
    """A sink, as far as its health is concerned."""

    name: str

    @property
    def problem(self) -> str | None: ...

    @property
    def unreachable(self) -> str | None: ...


class Closable(Protocol):
    """A sink, as far as its end is concerned."""

    name: str

    def close(self, timeout: float) -> bool: ...


def problems_of(sinks: Iterable[SinkHealth]) -> dict[str, str]:
    """Why sinks are not open, by name; empty where all are."""
    return {sink.name: problem for sink in sinks if (problem := sink.problem) is not None}


def health_of(
    problem: str | None,
    boot_id: str,
    sinks: Iterable[SinkHealth],
    journal: str | None,
    statuses: Iterable[StreamStatus],
) -> dict[str, Any]:
    """The body of the health answer.

    A sink that is down and a journal that cannot be written are told and are no reason to restart the daemon: both
    recover by themselves. The same holds for streams that suffer from load.

    Args:
        problem: what the watchdog holds against the daemon.
        boot_id: of the daemon.
        sinks: all of them.
        journal: why the event journal cannot be written.
        statuses: the latest of every stream.
    """
    body: dict[str, Any] = {"ok": problem is None, "problem": problem, "boot_id": boot_id}
    away = {sink.name: why for sink in sinks if (why := sink.problem or sink.unreachable) is not None}
    if away:
        body["sinks"] = away
    if journal is not None:
        body["events"] = journal
    if degraded := {s.stream: s.reason for s in statuses if s.degraded}:
        body["degraded"] = degraded
    return body


def ready_of(ok: bool, statuses: Iterable[StreamStatus], sinks: Iterable[SinkHealth], **more: Any) -> dict[str, Any]:
    """The body of the readiness answer; its `ready` is the answer itself.

    Args:
        ok: all parts run, a stream was live (or all are over), and the watchdog has no problem.
        statuses: the latest of every stream.
        sinks: all of them; one that is not open makes the daemon not ready.
        more: further members of the body.
    """
    states = {s.stream: {"state": s.state, "reason": s.reason} for s in statuses}
    down = problems_of(sinks)
    return {"ready": ok and not down, "streams": states, "sinks": down, **more}


def close_outputs(
    events: EventLog | None, sinks: Iterable[Closable], tap: Tap | None, http: HttpServer | None, deadline: float
) -> bool:
    """Closes all through which a daemon is heard, the HTTP port last.

    Args:
        events: event journal; commits what waits before the sinks close, in half of the time that is left, and their
            cursors after that.
        sinks: have the rest, each at least a moment.
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
            log.warning("sink did not close in time", sink=sink.name)
    if events is not None:
        events.close(max(_LEAST_S, deadline - time.monotonic()))
    if tap is not None:
        tap.close()
    if http is not None:
        http.close()
    return closed
