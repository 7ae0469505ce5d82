"""Metrics of clips and of the media folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class EvidenceCounts(NamedTuple):
    """What is shown at a scrape. Counts are since the start of the process."""

    ring_bytes: Mapping[str, int] = {}
    """By stream."""
    ring_overflows: Mapping[str, int] = {}
    clips_open: int = 0
    written: Mapping[str, int] = {}
    """Clips by stream."""
    failed: Mapping[tuple[str, str], int] = {}
    """Clips by stream and reason."""
    down: bool = False
    """The newest clip or snapshot could not be written, or the disk does not answer."""
    snapshots: Mapping[str, int] = {}
    """Written, by stream."""
    snapshots_failed: Mapping[tuple[str, str], int] = {}
    """By stream and reason."""


class Folder(Protocol):
    """What is in the media folder."""

    @property
    def bytes(self) -> int: ...
    @property
    def files(self) -> int: ...
    @property
    def removed(self) -> int: ...
    @property
    def problem(self) -> str: ...


class MediaMetrics(Collector):
    """The media folder, in the process that looks after it.

    Args:
        registry: where everything is registered.
        folder: its state; None while there is none.
    """

    def __init__(self, registry: CollectorRegistry, folder: Callable[[], Folder | None]) -> None:
        self._folder = folder
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """See `Collector`."""
        folder = self._folder()
        used = GaugeMetricFamily(
            "streamd_media_bytes", "Space used by clips and snapshots.", value=folder.bytes if folder else 0
        )
        files = GaugeMetricFamily(
            "streamd_media_files", "Files of clips and snapshots.", value=folder.files if folder else 0
        )
        removed = CounterMetricFamily(
            "streamd_media_removed",
            "Events whose clips and snapshots were removed by media.keep_gb, keep_days or min_free_gb.",
            value=folder.removed if folder else 0,
        )
        kept = GaugeMetricFamily(
            "streamd_media_kept",
            "1 while the media folder can be kept within its limits, 0 if not.",
            value=0.0 if folder is not None and folder.problem else 1.0,
        )
        return used, files, removed, kept


class EvidenceMetrics(Collector):
    """Everything is counted elsewhere and read at a scrape.

    Args:
        registry: where everything is registered.
        counts: the current counts; None while nothing is recorded.
    """

    def __init__(self, registry: CollectorRegistry, counts: Callable[[], EvidenceCounts | None]) -> None:
        self._counts = counts
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """See `Collector`."""
        counts = self._counts() or EvidenceCounts()
        size = GaugeMetricFamily(
            "streamd_packet_ring_bytes", "Compressed packets that are kept for clips.", labels=["stream"]
        )
        overflows = CounterMetricFamily(
            "streamd_packet_ring_overflows",
            "Groups of pictures dropped because one alone exceeded media.ring_mb.",
            labels=["stream"],
        )
        written = CounterMetricFamily("streamd_clips_written", "Clips written.", labels=["stream"])
        failed = CounterMetricFamily(
            "streamd_clips_failed", "Clips that could not be written, by reason.", labels=["stream", "reason"]
        )
        for stream, value in counts.ring_bytes.items():
            size.add_metric([stream], value)
        for stream, value in counts.ring_overflows.items():
            overflows.add_metric([stream], value)
        for stream, value in counts.written.items():
            written.add_metric([stream], value)
        for (stream, reason), value in counts.failed.items():
            failed.add_metric([stream, reason], value)
        snapshots = CounterMetricFamily(
            "streamd_snapshots_written", "Snapshots written; a better one replaces the first.", labels=["stream"]
        )
        missed = CounterMetricFamily(
            "streamd_snapshots_failed", "Snapshots that could not be written, by reason.", labels=["stream", "reason"]
        )
        for stream, value in counts.snapshots.items():
            snapshots.add_metric([stream], value)
        for (stream, reason), value in counts.snapshots_failed.items():
            missed.add_metric([stream, reason], value)
        opened = GaugeMetricFamily("streamd_clips_open", "Clips under way.", value=counts.clips_open)
        up = GaugeMetricFamily(
            "streamd_media_up",
            "1 while clips and snapshots can be written, 0 if the newest one failed or the disk does not answer.",
            value=0.0 if counts.down else 1.0,
        )
        return size, overflows, written, failed, opened, up, snapshots, missed
