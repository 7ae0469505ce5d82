"""The states and counts of streams."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

StreamState = Literal["CONNECTING", "LIVE", "BACKOFF", "ENDED", "FAILED"]


@dataclass(slots=True, frozen=True)
class StreamCounts:
    """Totals of one stream since the process started. received = published + dropped + in flight, always."""

    received: int = 0
    published: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    reconnects: int = 0


@dataclass(slots=True, frozen=True)
class StreamPast:
    """The state of a stream in a process that has ended, from which numbers and counters continue."""

    epoch: int
    """Epoch of its last connection; -1 if there was none."""
    counts: StreamCounts
    """`received` is also the next frame's seq."""
    rules: Mapping[str, Any] | None = None
    """What its rules had counted, as of `RuleEngine.state`; None if nothing is known of them."""


DEGRADED = frozenset({"overload", "late", "behind"})
"""Reasons of a live stream that is degraded by load."""


@dataclass(slots=True, frozen=True)
class StreamStatus:
    """The state of one stream, for subscribers, logs and health checks. Contains no credentials."""

    stream: str
    state: StreamState
    reason: str
    """Empty while there is no problem, otherwise one of `errors.SOURCE_REASONS`."""
    detail: str
    epoch: int
    since_wall_ns: int
    """Unix nanoseconds since when the stream has been live, down (CONNECTING, BACKOFF, FAILED) or ended."""
    retry_in_s: float | None = None
    """From `at_wall_ns` on."""
    codec: str = ""
    decoder: str = ""
    """software or nvdec."""
    width: int = 0
    height: int = 0
    fps: float = 0.0
    """As declared by the stream; 0 if unknown."""
    attempts: int = 0
    """Failed attempts in a row; 0 once it is live."""
    at_wall_ns: int = 0
    """Unix nanoseconds of this status; 0 where it does not matter."""
    camera_health: tuple[str, ...] | None = None
    """Why the camera cannot see, see `analysis.glance.health.STATES`; empty if it can, None if nobody watches."""
    behind_s: float | None = None
    """How many seconds later it was read than it could be, if that is the reason."""

    @property
    def degraded(self) -> bool:
        """True for a live stream that is degraded by load."""
        return self.state == "LIVE" and self.reason in DEGRADED

    def retry_left_s(self, wall_ns: int) -> float | None:
        """Seconds from `wall_ns` (Unix nanoseconds) to the next attempt; None if none is scheduled."""
        if self.retry_in_s is None or not self.at_wall_ns:
            return self.retry_in_s
        return round(min(self.retry_in_s, max(0.0, self.retry_in_s - (wall_ns - self.at_wall_ns) / 1e9)), 3)
