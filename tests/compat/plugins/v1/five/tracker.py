"""The nearest centre."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from pydantic import Field
from streamd.analysis.tracking import TrackingSettings
from streamd.analysis.tracking.pairing import Known, PairingTracker, Seen


class NearestSettings(TrackingSettings):
    """The track whose centre is nearest, best boxes first."""

    kind: Literal["nearest"] = "nearest"
    reach: float = Field(60.0, gt=0, description="Farthest that a centre moves between two frames, in pixels.")

    def open(self) -> PairingTracker:
        return Nearest(self)


class Nearest(PairingTracker):
    def __init__(self, settings: NearestSettings) -> None:
        super().__init__(settings)
        self._reach = settings.reach

    def pair(self, known: Known, seen: Seen) -> Iterator[tuple[int, int]]:
        tracks, boxes = ((each.xyxy[:, :2] + each.xyxy[:, 2:]) / 2 for each in (known, seen))
        gap = np.linalg.norm(tracks[:, None] - boxes, axis=2)
        gap[known.class_id[:, None] != seen.class_id] *= 4
        while gap.min() <= self._reach:
            track, box = divmod(int(gap.argmin()), gap.shape[1])
            yield track, box
            gap[track], gap[:, box] = np.inf, np.inf
