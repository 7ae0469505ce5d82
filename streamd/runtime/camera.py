"""What follows from the health of cameras: statuses, metrics, events, and rules that are unreliable meanwhile."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable

from streamd.events.record import Event
from streamd.flow.camera import HealthChange
from streamd.flow.runner import StreamRunner
from streamd.runtime.analytics import Analytics
from streamd.runtime.evidence import Evidence
from streamd.telemetry.metrics import Metrics


class CameraHealth:
    """Passes on what `CameraWatch` finds. Its methods may be called by any thread and do not wait.

    Args:
        metrics: of the streams.
        submit: receives each event; must not block.
        boot_id: identity of this daemon.
        life: number of this process among the daemon's workers.
        analytics: whose rules are unreliable meanwhile; None without rules.
        evidence: takes snapshots; None where there are none.
    """

    def __init__(
        self, metrics: Metrics, submit: Callable[[Event], object], *, boot_id: str, life: int = 0,
        analytics: Analytics | None = None, evidence: Evidence | None = None,
    ) -> None:  # fmt: skip
        self._metrics, self._submit, self._analytics, self._evidence = metrics, submit, analytics, evidence
        self._prefix, self._numbers = f"{boot_id}-{life}-camera", itertools.count(1)
        self._lock = threading.Lock()
        self._open: dict[str, dict[str, Event]] = {}
        """Begins of the events under way, by stream and state."""

    def watched(self, stream: str, on: bool) -> None:
        """A stream begins, with or without `camera_health`."""
        self._metrics.stream(stream).camera_health = () if on else None

    def changed(self, change: HealthChange, runner: StreamRunner) -> None:
        """The states of a camera have changed."""
        self._metrics.stream(change.stream).camera_health = change.states
        if self._analytics is not None:
            self._analytics.unreliable(change.stream, change.states)
        runner.report_health(change.states)
        with self._lock:
            under_way = self._open.setdefault(change.stream, {})
            for state in [each for each in under_way if each not in change.states]:
                self._end(under_way.pop(state), change.wall_ns, change.epoch, change.seq, "seen_again")
            for state in change.states:
                if state not in under_way:
                    under_way[state] = self._begin(change, state)

    def _begin(self, change: HealthChange, state: str) -> Event:
        event = Event(
            id=f"{self._prefix}{next(self._numbers)}", stream=change.stream, kind="begin", type=f"camera_{state}",
            epoch=change.epoch, seq=change.seq, at_ns=change.wall_ns, details={"state": state},
        )  # fmt: skip
        self._submit(event)
        if self._evidence is not None:
            self._evidence.camera_event(event, change.before)
        return event

    def _end(self, begin: Event, wall_ns: int, epoch: int, seq: int, reason: str) -> None:
        lasted_s = max(0, wall_ns - begin.at_ns) / 1e9
        end = Event(
            id=begin.id, stream=begin.stream, kind="end", type=begin.type, epoch=epoch, seq=seq,
            at_ns=max(wall_ns, begin.at_ns),
            details={"state": begin.details["state"], "reason": reason, "lasted_s": round(lasted_s, 3)},
        )  # fmt: skip
        self._submit(end)
        if self._evidence is not None:
            self._evidence.camera_event(end, None)

    def stop(self, stream: str) -> None:
        """A stream was removed or begins anew: nothing more is known of its camera."""
        with self._lock:
            for begin in self._open.pop(stream, {}).values():
                self._end(begin, time.time_ns(), begin.epoch, begin.seq, "stopped")
        if self._analytics is not None:
            self._analytics.unreliable(stream, ())

    def close(self) -> None:
        """The daemon stops."""
        for stream in list(self._open):
            self.stop(stream)
