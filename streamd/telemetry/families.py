"""Metric families whose values are counted elsewhere and read at a scrape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

Values = (
    Mapping[str, float]
    | Mapping[tuple[str, str], float]
    | Mapping[tuple[str, str, str], float]
    | Mapping[tuple[str, ...], float]
    | float
)
"""By the value of the only label, by the values of all labels, or without labels."""
F = TypeVar("F", CounterMetricFamily, GaugeMetricFamily)


def counter(name: str, documentation: str, labels: str, values: Values) -> CounterMetricFamily:
    """A counter.

    Args:
        name: without `_total`.
        documentation: its help text.
        labels: their names, separated by spaces; empty for none.
        values: since the start.
    """
    return _fill(CounterMetricFamily(name, documentation, labels=labels.split()), values)


def gauge(name: str, documentation: str, labels: str, values: Values) -> GaugeMetricFamily:
    """A gauge; arguments as of `counter`."""
    return _fill(GaugeMetricFamily(name, documentation, labels=labels.split()), values)


def _fill(family: F, values: Values) -> F:
    if not isinstance(values, Mapping):
        family.add_metric([], values)
        return family
    for key, value in values.items():
        family.add_metric([key] if isinstance(key, str) else list(key), value)
    return family
