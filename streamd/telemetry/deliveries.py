"""Metrics of sinks that deliver events from the journal."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from streamd.telemetry.families import counter, gauge

_OUTCOMES = ("delivered", "refused", "expired", "deleted")


class Counts(Protocol):
    """accepted = queued + delivered + refused + expired + deleted."""

    @property
    def accepted(self) -> int: ...
    @property
    def queued(self) -> int: ...
    @property
    def delivered(self) -> int: ...
    @property
    def refused(self) -> int: ...
    @property
    def expired(self) -> int: ...
    @property
    def deleted(self) -> int: ...


class Deliveries(Collector):
    """Shows the counts that the journal keeps for each cursor. They survive restarts of the daemon.

    Args:
        registry: where the metrics are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._shown: dict[str, Callable[[], Counts]] = {}
        registry.register(self)

    def show(self, sink: str, counts: Callable[[], Counts]) -> None:
        """Shows a sink's counts from now on. Any thread."""
        self._shown = {**self._shown, sink: counts}

    def collect(self) -> Iterable[Metric]:
        """See `Collector`."""
        shown = {sink: read() for sink, read in self._shown.items()}
        return (
            counter(
                "streamd_sink_events_accepted", "Events committed for a sink with a cursor.", "sink",
                {sink: counts.accepted for sink, counts in shown.items()},
            ),
            counter(
                "streamd_sink_events_settled",
                "Events that no longer wait for a sink: delivered, refused by its receiver, expired, or deleted by "
                "request. Together with those that wait, exactly the accepted ones.",
                "sink outcome",
                {(sink, each): getattr(counts, each) for sink, counts in shown.items() for each in _OUTCOMES},
            ),
            gauge(
                "streamd_sink_events_queued", "Events that wait for a sink.", "sink",
                {sink: counts.queued for sink, counts in shown.items()},
            ),
        )  # fmt: skip
