"""The metrics of all workers as one registry."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from streamd.workers.report import Family, Report

_OURS = frozenset({"streamd_sink_messages", "streamd_config_reloads", "streamd_config_last_reload_success"})
"""Counted by the parent, which publishes messages and reads configurations."""
_THEIRS = frozenset({"streamd_batch_size", "streamd_decoder_sessions", "streamd_slots_in_flight"})
"""The parent has no engine and no decoder."""
_STATE = "streamd_stream_state"


def merge(own: Iterable[Metric], reports: Iterable[Report], owners: Mapping[str, int]) -> Iterable[Metric]:
    """The metric families of the parent and the workers, each family once.

    A stream's samples are the same as in one process, since only one worker has it. All others have the worker's number
    as the label `worker`.

    Args:
        own: the parent's samples.
        reports: the latest of each worker.
        owners: the worker of each stream; only its samples count.
    """
    families = {metric.name: metric for metric in own if metric.name not in _THEIRS}
    for report in reports:
        for family in report.families:
            if family.name in _OURS:
                continue
            metric = families.get(family.name)
            if metric is None:
                metric = families[family.name] = Metric(family.name, family.documentation, family.type)
            for name, labels, value in family.samples:
                if "stream" not in labels:
                    metric.add_sample(name, {**labels, "worker": str(report.worker)}, value)
                elif owners.get(labels["stream"], report.worker) == report.worker:
                    metric.add_sample(name, labels, value)
    return families.values()


def of_the_dead(report: Report, lost: Collection[str]) -> Report:
    """The parts of a report that still hold when its process has ended: counters of streams, and states.

    Args:
        report: the last one.
        lost: streams that wait for the restart of the process, in BACKOFF.
    """

    def samples(family: Family) -> list[tuple[str, dict[str, str], float]]:
        mine = [sample for sample in family.samples if "stream" in sample[1]]
        if family.name != _STATE:
            return mine
        return [
            (name, labels, float(labels["state"] == "BACKOFF") if labels["stream"] in lost else value)
            for name, labels, value in mine
        ]

    kept = [
        msgspec.structs.replace(family, samples=samples(family))
        for family in report.families
        if family.type == "counter" or family.name == _STATE
    ]
    return msgspec.structs.replace(report, problem=None, families=kept)


class Merged(Collector):
    """Registers itself in `registry`, which then contains everything.

    Args:
        registry: for the metrics port; nothing else is registered in it.
        own: the parent's own metrics.
        reports: the newest of each worker.
        owners: see `merge`.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        own: CollectorRegistry,
        reports: Callable[[], Iterable[Report]],
        owners: Callable[[], Mapping[str, int]],
    ) -> None:
        self._own, self._reports, self._owners = own, reports, owners
        registry.register(self)

    def describe(self) -> Iterable[Metric]:
        """Describes nothing in advance: the families depend on the workers."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """All families."""
        return merge(self._own.collect(), self._reports(), self._owners())
