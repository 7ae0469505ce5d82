"""The tracking room: which boxes of successive frames show the same object.

A tracker is given the boxes of frames of many streams at once and the state of each stream (`StreamTracks`), and says
which track each box belongs to. It runs by the time of capture, never by the number of frames. To add a kind: write
one file here with its settings and a class made of them, name both in `TrackingConfig` and `open_tracker`, and pass
`tests/tracking/test_contract.py`.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Tag

from streamd.tracking.batch import Tracker
from streamd.tracking.bytetrack import ByteTrack, ByteTrackSettings
from streamd.tracking.iou import IouSettings, IouTracker
from streamd.tracking.observation import EndedTrack, EndReason, Observation, Tracked
from streamd.tracking.tracks import StreamTracks

__all__ = [
    "KINDS",
    "ByteTrackSettings",
    "EndReason",
    "EndedTrack",
    "IouSettings",
    "Observation",
    "StreamTracks",
    "Tracked",
    "Tracker",
    "TrackingConfig",
    "open_tracker",
]


def _kind(value: Any) -> str:
    kind = value.get("kind", "bytetrack") if isinstance(value, dict) else getattr(value, "kind", "")
    return str(kind)


TrackingConfig = Annotated[
    Annotated[ByteTrackSettings, Tag("bytetrack")] | Annotated[IouSettings, Tag("iou")], Discriminator(_kind)
]
"""`{}` is ByteTrack with its defaults."""
KINDS = ("bytetrack", "iou")
"""Of `TrackingConfig`."""


def open_tracker(settings: ByteTrackSettings | IouSettings) -> Tracker:
    """The tracker that the settings ask for. It keeps nothing between calls: one serves all streams of a thread."""
    if isinstance(settings, ByteTrackSettings):
        return ByteTrack(settings)
    return IouTracker(settings)
