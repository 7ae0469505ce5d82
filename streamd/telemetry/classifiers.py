"""Metrics of second-stage classifiers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from streamd.telemetry.families import counter, gauge

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
        counts = self._counts()
        return (
            counter(
                "streamd_classified",
                "Crops that were classified, by the object's label after it; the label is empty while no score reaches "
                "the threshold.",
                "stream classifier label",
                {(stream, c.name, label): n for c in counts for (stream, label), n in c.classified.copy().items()},
            ),
            counter(
                "streamd_classifier_missed", "Crops that were wanted but not classified, by reason.",
                "stream classifier reason",
                {(stream, c.name, reason): n for c in counts for (stream, reason), n in c.missed.copy().items()},
            ),
            gauge(
                "streamd_classifier_waiting", "Crops that wait for the classifier.", "classifier",
                {c.name: c.waiting for c in counts},
            ),
            gauge(
                "streamd_classifier_bytes", "Memory of the crops that wait or are being classified.", "classifier",
                {c.name: c.held_bytes for c in counts},
            ),
            counter(
                "streamd_classifier_busy_seconds", "Time that the classifier was at work.", "classifier",
                {c.name: c.busy_s for c in counts},
            ),
        )  # fmt: skip
