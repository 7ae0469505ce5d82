"""Tracking by overlap only: a box belongs to the track whose last box it overlaps most.

After Bochinski et al., "High-Speed Tracking-by-Detection Without Using Image Information" (AVSS 2017), with a track
that may stay unseen for a while. It predicts nothing and ignores boxes with low scores: the cheapest kind, for scenes
in which objects move by less than their size between two frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from streamd.analysis.tracking import TRACKERS, TrackingSettings
from streamd.analysis.tracking.boxes import Boxes
from streamd.analysis.tracking.pairing import StillTracker
from streamd.analysis.tracking.pairs import Indices, Pairs, Rectangles, match, meeting
from streamd.analysis.tracking.tracks import ID, LEADER, Matrix
from streamd.settings import Seconds, Unit

_OTHER_CLASS = 0.5
"""Factor of the overlap if box and track are of different classes."""


@TRACKERS.register
class IouSettings(TrackingSettings):
    """Tracking by overlap only: the cheapest kind, for slow objects and high frame rates."""

    kind: Literal["iou"] = "iou"
    low: Unit = Field(0.4, description="Lowest score of a box that may begin or continue a track.")
    gate: Unit = Field(0.3, description="Smallest overlap (IoU) of a box with the last box of its track.")
    lost_s: Seconds = Field(1.0, description="Observed time after which an unseen track ends, in seconds.")

    def open(self) -> IouTracker:
        """See `TrackingSettings.open`."""
        return IouTracker(self)


class IouTracker(StillTracker):
    """See the module."""

    def __init__(self, settings: IouSettings) -> None:
        super().__init__(settings)
        self._gate = settings.gate

    def _associate(
        self, tracks: Matrix, counts: tuple[int, ...], stream: Indices | None, boxes: Boxes, passed: Sequence[float]
    ) -> tuple[Indices, Indices]:
        rows, columns = meeting(Rectangles.around(tracks, counts), boxes.rectangles())
        worth = Pairs(rows, columns, tracks, None, boxes.place).alike()
        worth[tracks[LEADER][rows] != boxes.class_id[columns]] *= _OTHER_CLASS
        able = (worth >= self._gate) & (boxes.score[columns] >= self._low)
        # Confirmed tracks are matched first.
        worth += (tracks[ID] > 0)[rows]
        taken = match(worth, able, rows, columns, tracks.shape[1], len(boxes.score))
        return rows[taken], columns[taken]
