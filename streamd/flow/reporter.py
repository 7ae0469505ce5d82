"""What is reported of a stream: its state, and the problems it has while it is live. The runner decides."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import structlog

from streamd.errors import SourceReason
from streamd.security.redact import redact
from streamd.telemetry.streams import StreamMetrics
from streamd.types import DEGRADED, StreamState, StreamStatus

log = structlog.get_logger(__name__)

Event = Literal["opened", "broke", "retry", "ended", "gave_up"]

TRANSITIONS: dict[tuple[StreamState, Event], StreamState] = {
    ("CONNECTING", "opened"): "LIVE",
    ("CONNECTING", "broke"): "BACKOFF",
    ("CONNECTING", "ended"): "ENDED",
    ("CONNECTING", "gave_up"): "FAILED",
    ("LIVE", "broke"): "BACKOFF",
    ("LIVE", "ended"): "ENDED",
    ("LIVE", "gave_up"): "FAILED",
    ("BACKOFF", "retry"): "CONNECTING",
    ("BACKOFF", "ended"): "ENDED",
    ("BACKOFF", "gave_up"): "FAILED",
}
"""Every allowed transition between the states of a stream."""

CALM_NS = 5_000_000_000
"""A problem of a live stream is over if it has not recurred for this long."""
DOWN: tuple[StreamState, ...] = ("CONNECTING", "BACKOFF", "FAILED")
"""`since` tells how long a stream has been in these, whichever of them it is in now."""
STILL_DOWN_S = 600.0
"""A stream that stays down for the same reason is logged this often."""


_KEPT = ("codec", "decoder", "width", "height", "fps", "camera_health")
"""Fields of a status that outlast a change of state."""


class StatusReporter:
    """The status of one stream, which changes only through these methods. Any thread, except where they say otherwise.

    Args:
        stream: the stream's id.
        metrics: the stream's counters.
        on_status: called with every change; must not block.
        epoch: of the last connection; -1 if there was none.
        watched: whether somebody watches if the camera can see.
    """

    def __init__(
        self,
        stream: str,
        metrics: StreamMetrics,
        on_status: Callable[[StreamStatus], None],
        epoch: int,
        *,
        watched: bool = False,
    ) -> None:
        self.lock = threading.RLock()
        """Held while the status changes; the runner's own changes that go with it happen under it, too."""
        health = () if watched else None
        self.status = StreamStatus(
            stream, "CONNECTING", "", "", max(epoch, 0), time.time_ns(), camera_health=health
        )  # fmt: skip
        self._stream, self._metrics, self._on_status = stream, metrics, on_status
        self.troubles: dict[SourceReason, int] = {}
        """When each problem of the live stream is considered over, monotonic nanoseconds; for the runner's thread."""
        self._load: tuple[SourceReason | Literal[""], str, float | None] = ("", "", None)
        """Reason, detail and `behind_s` if the live stream is degraded; reported while it has no other problem."""
        self._told: dict[str, float] = {}
        """When each reason for being down was last logged, monotonic seconds; empty while the stream is live."""

    def start(self) -> None:
        """Reports the first status."""
        self._metrics.state = self.status.state
        self._on_status(self.status)

    def transition(self, event: Event, epoch: int, reason: str = "", detail: str = "", **extra: Any) -> None:
        """Changes the state by `TRANSITIONS`.

        Args:
            event: what happened.
            epoch: of the last connection; -1 if there was none.
            reason: one of `errors.SOURCE_REASONS`, or empty.
            detail: for people; secrets are redacted.
            extra: other fields of the status.
        """
        with self.lock:
            was, state, now = self.status, TRANSITIONS[self.status.state, event], time.time_ns()
            keep = {k: getattr(was, k) for k in _KEPT}
            since = was.since_wall_ns if was.state in DOWN and state in DOWN else now
            attempts = 0 if state == "LIVE" else was.attempts + (event in ("broke", "gave_up"))
            self.status = StreamStatus(
                self._stream, state, reason, redact(detail), max(epoch, 0), since, attempts=attempts, at_wall_ns=now,
                **(keep | extra),
            )  # fmt: skip
            self._metrics.state = state
            self._load, self._metrics.degraded = ("", "", None), ""
            self._log(**extra)
            self._on_status(self.status)

    def _log(self, **extra: Any) -> None:
        """Logs the state: one line when a stream goes down, another for each new reason, then rarely."""
        status, now = self.status, time.monotonic()
        level = log.warning if status.state in ("BACKOFF", "FAILED") else log.info
        if status.state == "LIVE":
            self._told.clear()
        elif status.state == "CONNECTING":
            level = log.debug
        elif status.state == "BACKOFF":
            if now - self._told.get(status.reason, -STILL_DOWN_S) < STILL_DOWN_S:
                level = log.debug
            else:
                self._told[status.reason] = now
                if status.attempts > 1:
                    extra["attempts"] = status.attempts
                    extra["down_s"] = round((status.at_wall_ns - status.since_wall_ns) / 1e9)
        level(
            "stream " + status.state.lower(), stream=self._stream, reason=status.reason or None,
            detail=status.detail or None, **extra,
        )  # fmt: skip

    def opened(self, codec: str, at_ns: int) -> tuple[SourceReason | Literal[""], str]:
        """A connection has given its first picture, at `at_ns` monotonic nanoseconds: earlier problems are over. The
        runner's thread.

        Returns:
            Reason and detail of a problem that comes with it; empty if there is none.
        """
        self.troubles.clear()
        before = self.status.codec
        if not before or before == codec:
            return "", ""
        self._metrics.fail("codec_changed")
        self.troubles["codec_changed"] = at_ns + CALM_NS
        return "codec_changed", f"was {before}, is {codec}"

    def recoded(self, codec: str, now_ns: int) -> None:
        """Pictures are of this codec now; reported if they were of another. The runner's thread."""
        before = self.status.codec
        if codec == before:
            return
        self._metrics.codec = codec
        with self.lock:
            self.status = replace(self.status, codec=codec)
        self.trouble("codec_changed", f"was {before}, is {codec}", now_ns)

    def trouble(self, reason: SourceReason, detail: str, now_ns: int) -> None:
        """Reports a problem of a stream that stays live; counted once until it is over. The runner's thread."""
        fresh = self.troubles.get(reason, 0) <= now_ns
        self.troubles[reason] = now_ns + CALM_NS
        if fresh:
            self._metrics.fail(reason)
            self._annotate(reason, detail)

    def calm(self, now_ns: int) -> None:
        """Reports that the problems are over if none has recurred; there must be some. The runner's thread."""
        if max(self.troubles.values()) <= now_ns:
            with self.lock:
                self.troubles.clear()
                self._annotate(*self._load)

    def resized(self, width: int, height: int) -> None:
        """Pictures have another size now; reported with the next status."""
        with self.lock:
            self.status = replace(self.status, width=width, height=height)

    def degrade(self, reason: SourceReason | Literal[""], detail: str, behind_s: float | None = None) -> None:
        """Reports how load affects the live stream.

        Args:
            reason: empty if not at all.
            detail: for people.
            behind_s: how many seconds later it is read than it could be, if that is the reason.
        """
        with self.lock:
            if self.status.state != "LIVE" or reason == self._load[0]:
                return
            self._load = (reason, detail, behind_s)
            self._metrics.degraded = reason
            if reason:
                self._metrics.fail(reason)
            if not self.troubles:
                self._annotate(*self._load)

    def report_health(self, states: tuple[str, ...]) -> None:
        """Reports why the camera cannot see; no states if it can."""
        with self.lock:
            self.status = replace(self.status, camera_health=states, at_wall_ns=time.time_ns())
            self._on_status(self.status)

    def _annotate(self, reason: str, detail: str, behind_s: float | None = None) -> None:
        """Changes the reason and what belongs to it, not the state."""
        with self.lock:
            before = self.status
            self.status = replace(
                before, reason=reason, detail=detail, behind_s=behind_s, at_wall_ns=time.time_ns()
            )  # fmt: skip
            # Load affects many streams at once; `runtime/load` logs one line for all of them.
            level = log.debug if {reason, before.reason} <= DEGRADED | {""} else log.info
            level("stream status", stream=self._stream, reason=reason or None, detail=detail or None)
            self._on_status(self.status)
