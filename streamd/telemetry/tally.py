"""Per-frame counters as plain numbers with one writing thread each, added up at scrape time.

prometheus_client takes a lock for each number it changes, and each frame changes about twenty.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Tally:
    """Observations of one thread, by bucket.

    Args:
        bounds: upper bounds, ascending, infinity last.
    """

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * len(bounds)
        """Count per bucket, not cumulative."""
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Counts `value`, the given number of times."""
        self.counts[bisect_left(self._bounds, value)] += times
        self.sum += value * times


class Histograms(Collector):
    """A registered histogram that adds up the tallies of its threads.

    Args:
        name: name of the metric.
        documentation: help text of the metric.
        label: its only label.
        buckets: upper bounds, ascending, without infinity.
        registry: where it is registered.
    """

    def __init__(
        self, name: str, documentation: str, label: str, buckets: Sequence[float], registry: CollectorRegistry
    ) -> None:
        self._name, self._documentation, self._label = name, documentation, label
        self._bounds = (*buckets, float("inf"))
        self._texts: list[str] = [floatToGoString(bound) for bound in self._bounds]  # type: ignore[no-untyped-call]
        self._tallies: list[tuple[str, Tally]] = []
        registry.register(self)

    def tally(self, value: str) -> Tally:
        """A new tally for the label's `value`; only one thread may use it."""
        made = Tally(self._bounds)
        self._tallies.append((value, made))
        return made

    def collect(self) -> Iterable[Metric]:
        """See `Collector`."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=[self._label])
        by_value: dict[str, list[Tally]] = {}
        for value, tally in list(self._tallies):
            by_value.setdefault(value, []).append(tally)
        for value, tallies in by_value.items():
            total = sum(tally.sum for tally in tallies)
            counts, so_far = [tally.counts.copy() for tally in tallies], 0
            buckets: list[tuple[str, float]] = []
            for text, *each in zip(self._texts, *counts, strict=True):
                so_far += sum(each)
                buckets.append((text, so_far))
            family.add_metric([value], buckets, total)
        return (family,)


class LabelCounts(Collector):
    """A registered counter for each label of a model and each stream.

    Args:
        name: name of the metric, without _total.
        documentation: help text of the metric.
        registry: where it is registered.
    """

    def __init__(self, name: str, documentation: str, registry: CollectorRegistry) -> None:
        self._name, self._documentation = name, documentation
        self._counts: list[tuple[str, Sequence[str], list[int]]] = []
        registry.register(self)

    def of(self, stream: str, labels: Sequence[str]) -> list[int]:
        """New counts for `labels`; only one thread may add to them."""
        made = [0] * len(labels)
        self._counts.append((stream, labels, made))
        return made

    def collect(self) -> Iterable[Metric]:
        """See `Collector`. Labels that were never counted are omitted."""
        family = CounterMetricFamily(self._name, self._documentation, labels=["stream", "label"])
        found: dict[tuple[str, str], int] = {}
        for stream, labels, counts in list(self._counts):
            for label, count in zip(labels, counts, strict=True):
                if count:
                    found[stream, label] = found.get((stream, label), 0) + count
        for (stream, label), count in found.items():
            family.add_metric([stream, label], count)
        return (family,)
