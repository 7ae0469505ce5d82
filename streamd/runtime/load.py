"""Which streams are degraded by load: reported in their status and metrics, and in one log line a minute for all."""

from __future__ import annotations

from collections.abc import Iterable

import structlog

from streamd.flow.load import LoadGauge
from streamd.flow.runner import StreamRunner
from streamd.telemetry.streams import StreamMetrics

log = structlog.get_logger(__name__)

LOOK_S = 1.0
TELL_S = 60.0
_WORST = ("behind", "overload", "late", "")
"""Which reason the line gives if there are several: what comes first is the cause of the others."""
NAMED = 8
"""Number of streams named in the line."""


class LoadWatch:
    """Monitors the load of all streams of a daemon. For one thread."""

    def __init__(self) -> None:
        self._gauges: dict[str, LoadGauge] = {}
        self._next_look = 0.0
        self._told_at: float | None = None
        """When degraded streams were last logged, monotonic seconds; None if there are none."""

    def look(self, now: float, streams: Iterable[tuple[StreamRunner, StreamMetrics]]) -> None:
        """Assesses every stream once a second; returns immediately in between.

        Args:
            now: monotonic seconds.
            streams: all of them.
        """
        if now < self._next_look:
            return
        self._next_look = now + LOOK_S
        gauges: dict[str, LoadGauge] = {}
        degraded: list[str] = []
        worst = ("", "")
        for runner, counters in streams:
            gauge = gauges[runner.stream] = self._gauges.get(runner.stream) or LoadGauge()
            if runner.status.state == "LIVE":
                gauge.look(counters)
            else:
                gauge.reset()
            runner.degrade(gauge.reason, gauge.detail, gauge.behind_s)
            if gauge.reason:
                degraded.append(runner.stream)
                worst = min(worst, (gauge.reason, gauge.detail), key=lambda each: _WORST.index(each[0]))
        self._gauges = gauges
        if not degraded:
            if self._told_at is not None:
                log.info("streams are no longer degraded")
            self._told_at = None
        elif self._told_at is None or now - self._told_at >= TELL_S:
            self._told_at = now
            more = [f"{len(degraded) - NAMED} more"] if len(degraded) > NAMED else []
            log.warning(
                "streams degraded", degraded=len(degraded), of=len(gauges), reason=worst[0], detail=worst[1],
                streams=", ".join(degraded[:NAMED] + more),
            )  # fmt: skip
