"""The coordinator's metrics for Prometheus, made of its samples at each scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from streamd.fleet.view import METRICS, Samples


class FleetMetrics(Collector):
    """Args:
    samples: returns `Coordinator.metrics`.
    """

    def __init__(self, samples: Callable[[], Samples]) -> None:
        self._samples = samples

    def describe(self) -> Iterator[Metric]:
        """Without asking: the coordinator may not run yet."""
        for name, (kind, text) in METRICS.items():
            yield _family(name, kind, text, ())

    def collect(self) -> Iterator[Metric]:
        """One family a metric."""
        samples = self._samples()
        for name, (kind, text) in METRICS.items():
            found = samples.get(name, [])
            labels = tuple(found[0][0]) if found else ()
            family = _family(name, kind, text, labels)
            for values, number in found:
                family.add_metric([values[label] for label in labels], number)
            yield family


def _family(name: str, kind: str, text: str, labels: tuple[str, ...]) -> CounterMetricFamily | GaugeMetricFamily:
    made = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
    return made(name, text, labels=labels)
