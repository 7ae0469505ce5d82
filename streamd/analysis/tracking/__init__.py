"""Tracking: which boxes of successive frames show the same object.

A tracker gets the boxes of frames of any number of streams in one call, together with the state of each stream
(`StreamTracks`), and returns the track of each box. It works by the time of capture, never by the number of frames. To
add a kind, write one file here with its settings class, decorated with `TRACKERS.register`, whose `open` returns a
`Tracker`; `tests/analysis/tracking/test_contract.py` tests it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from streamd.analysis.tracking.observation import EndedTrack, EndReason, Observation, Tracked
from streamd.analysis.tracking.tracks import StreamTracks
from streamd.errors import ConfigError
from streamd.settings import KindSettings, Problems, Seconds, Unit
from streamd.settings.plugins import opened, origin
from streamd.settings.registry import Registry

if TYPE_CHECKING:
    from streamd.analysis.tracking.batch import Tracker

__all__ = [
    "TRACKERS",
    "EndReason",
    "EndedTrack",
    "Observation",
    "StreamTracks",
    "Tracked",
    "TrackingConfig",
    "TrackingSettings",
    "open_tracker",
]


class TrackingSettings(KindSettings):
    """Settings common to all trackers."""

    low: Unit = Field(0.1, description="Lowest score of a box that may continue a track.")
    certain: Unit = Field(
        0.6,
        description="Score from which the first box of a track confirms it at once. Other tracks need a second box.",
    )
    lost_s: Seconds = Field(
        2.0,
        description="Time after which a track that is not seen ends, in seconds of observed time "
        "(docs/tracking.md). Raise it if objects stay hidden for long and few look alike.",
    )
    wall_s: Seconds = Field(
        5.0, description="Time by the clock after which a track that is not seen ends in any case, in seconds."
    )
    outage_s: Seconds = Field(5.0, description="Time without any frame after which all tracks end, in seconds.")
    max_tracks: int = Field(
        1000,
        ge=1,
        le=100_000,
        description="Largest number of tracks per stream. The ones unseen for longest are dropped first.",
    )

    publish_weak: bool = Field(
        False,
        description="Whether boxes of confirmed tracks are published even if their score is below `model.detect.conf`.",
    )

    def check(self) -> Problems:
        """See `KindSettings.check`."""
        if self.low > self.certain:
            yield ("low",), f"must not be above certain ({self.certain})"

    def open(self) -> Tracker:
        """Creates the tracker. It keeps nothing between calls: one serves all streams of a thread."""
        raise NotImplementedError


TRACKERS: Registry[TrackingSettings] = Registry(
    "tracker", TrackingSettings, "streamd.analysis.tracking", default="bytetrack", group="streamd.trackers", contract=1
)

if TYPE_CHECKING:
    TrackingConfig = TrackingSettings
else:
    TrackingConfig = TRACKERS.one_of()


def open_tracker(settings: TrackingSettings) -> Tracker:
    """Creates the tracker that `settings` describe; see `TrackingSettings.open`.

    Raises:
        ConfigError: its package is at fault.
    """
    from streamd.analysis.tracking.batch import Tracker

    return opened(origin(settings), Tracker, ConfigError, settings.open)
