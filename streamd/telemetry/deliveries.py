"""Metrics of sinks that deliver events from the journal."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


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
        accepted = CounterMetricFamily(
            "streamd_sink_events_accepted", "Events committed for a sink with a cursor.", labels=["sink"]
        )
        settled = CounterMetricFamily(
            "streamd_sink_events_settled",
            "Events that no longer wait for a sink: delivered, refused by its receiver, expired, or deleted by "
            "request. Together with those that wait, exactly the accepted ones.",
            labels=["sink", "outcome"],
        )
        queued = GaugeMetricFamily("streamd_sink_events_queued", "Events that wait for a sink.", labels=["sink"])
        for sink, read in self._shown.items():
            counts = read()
            accepted.add_metric([sink], counts.accepted)
            queued.add_metric([sink], counts.queued)
            for outcome in ("delivered", "refused", "expired", "deleted"):
                settled.add_metric([sink, outcome], getattr(counts, outcome))
        return accepted, settled, queued
