"""Metrics of second-stage classifiers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


@dataclass(slots=True)
class ClassifierCounts:
    """The counts of one classifier since the start of the process. Each is changed with the classifier's lock held."""

    name: str
    classified: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Crops by stream and label; an empty label where none reached the threshold."""
    missed: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Crops that were not classified, by stream and reason."""
    waiting: int = 0
    held_bytes: int = 0
    busy_s: float = 0.0


class ClassifierMetrics(Collector):
    """Everything is counted elsewhere and read at a scrape, except latency.

    Args:
        registry: where everything is registered.
        counts: the current counts.
    """

    def __init__(self, registry: CollectorRegistry, counts: Callable[[], Sequence[ClassifierCounts]]) -> None:
        self._counts = counts
        self.latency = Histogram(
            "streamd_classifier_latency_seconds",
            "Time from the capture of a frame to the result for a crop of it.",
            ["classifier"],
            buckets=_BUCKETS,
            registry=registry,
        )
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """See `Collector`."""
        classified = CounterMetricFamily(
            "streamd_classified",
            "Crops that were classified, by the object's label after it; the label is empty while no score reaches the "
            "threshold.",
            labels=["stream", "classifier", "label"],
        )
        missed = CounterMetricFamily(
            "streamd_classifier_missed",
            "Crops that were wanted but not classified, by reason.",
            labels=["stream", "classifier", "reason"],
        )
        waiting = GaugeMetricFamily(
            "streamd_classifier_waiting", "Crops that wait for the classifier.", labels=["classifier"]
        )
        held = GaugeMetricFamily(
            "streamd_classifier_bytes", "Memory of the crops that wait or are being classified.", labels=["classifier"]
        )
        busy = CounterMetricFamily(
            "streamd_classifier_busy_seconds", "Time that the classifier was at work.", labels=["classifier"]
        )
        for each in self._counts():
            for (stream, label), value in each.classified.copy().items():
                classified.add_metric([stream, each.name, label], value)
            for (stream, reason), value in each.missed.copy().items():
                missed.add_metric([stream, each.name, reason], value)
            waiting.add_metric([each.name], each.waiting)
            held.add_metric([each.name], each.held_bytes)
            busy.add_metric([each.name], each.busy_s)
        return classified, missed, waiting, held, busy
