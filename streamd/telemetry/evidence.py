"""Metrics of clips and of the media folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from streamd.telemetry.families import counter, gauge


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
    """A clip or snapshot could not be written, nor could anything else since; or the disk does not answer."""
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
        return (
            gauge("streamd_media_bytes", "Space used by clips and snapshots.", "", folder.bytes if folder else 0),
            gauge("streamd_media_files", "Files of clips and snapshots.", "", folder.files if folder else 0),
            counter(
                "streamd_media_removed",
                "Events whose clips and snapshots were removed by media.keep_gb, keep_days or min_free_gb.",
                "", folder.removed if folder else 0,
            ),
            gauge(
                "streamd_media_kept", "1 while the media folder can be kept within its limits, 0 if not.",
                "", 0.0 if folder is not None and folder.problem else 1.0,
            ),
        )  # fmt: skip


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
        return (
            gauge(
                "streamd_packet_ring_bytes", "Compressed packets that are kept for clips.", "stream",
                counts.ring_bytes,
            ),
            counter(
                "streamd_packet_ring_overflows",
                "Groups of pictures dropped because one alone exceeded media.ring_mb.",
                "stream", counts.ring_overflows,
            ),
            counter("streamd_clips_written", "Clips written.", "stream", counts.written),
            counter(
                "streamd_clips_failed", "Clips that could not be written, by reason.", "stream reason", counts.failed
            ),
            gauge("streamd_clips_open", "Clips under way.", "", counts.clips_open),
            gauge(
                "streamd_media_up",
                "1 while clips and snapshots can be written; 0 from one that failed until the folder can be written "
                "again, and while the disk does not answer.",
                "", 0.0 if counts.down else 1.0,
            ),
            counter(
                "streamd_snapshots_written", "Snapshots written; a better one replaces the first.", "stream",
                counts.snapshots,
            ),
            counter(
                "streamd_snapshots_failed", "Snapshots that could not be written, by reason.", "stream reason",
                counts.snapshots_failed,
            ),
        )  # fmt: skip
