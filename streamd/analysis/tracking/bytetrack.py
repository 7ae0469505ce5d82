"""ByteTrack by time: boxes with high scores first, then those with low scores for the remaining tracks.

After Zhang et al., "ByteTrack: Multi-Object Tracking by Associating Every Detection Box" (ECCV 2022), with these
differences: the filter runs by the time of capture (`motion`), the gate widens with the uncertainty of the prediction
(`pairs`), boxes with low scores also recover lost tracks, a first box with a high enough score confirms its track, and
the camera's own motion is estimated from the tracks (`camera`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from streamd.analysis.tracking import TRACKERS, TrackingSettings
from streamd.analysis.tracking.batch import Life, Tracker
from streamd.analysis.tracking.boxes import Boxes
from streamd.analysis.tracking.camera import FEWEST, common_shift
from streamd.analysis.tracking.motion import Motion
from streamd.analysis.tracking.native import Library, NativeStep, library
from streamd.analysis.tracking.pairs import FEW, Indices, Pairs, Rectangles, every, match, meeting
from streamd.analysis.tracking.tracks import CENTER, HALF, HEIGHT, ID, LEADER, TWO, UNIT, VARIANCE, WALL, ZERO, Matrix
from streamd.settings import Problems, Unit


@TRACKERS.register
class ByteTrackSettings(TrackingSettings):
    """ByteTrack by the time of capture: for people and vehicles at any frame rate."""

    kind: Literal["bytetrack"] = "bytetrack"
    high: Unit = Field(
        0.4,
        description="Score from which boxes are matched first, and may begin a track. Lower it if the detector's "
        "scores are low.",
    )
    gate: Unit = Field(
        0.2,
        description="Smallest overlap (IoU) of a box with its track, multiplied by the score, for scores of at "
        "least `high`.",
    )
    weak_gate: Unit = Field(0.3, description="Smallest overlap (IoU) of a weaker box with its track.")
    new_gate: Unit = Field(
        0.3, description="Smallest overlap (IoU) of the second box of a track that is not confirmed yet."
    )
    camera_motion: bool = Field(
        True, description="Whether the motion of the camera, estimated from the tracks, is compensated."
    )

    def check(self) -> Problems:
        """See `KindSettings.check`."""
        yield from super().check()
        if not self.low <= self.high <= self.certain:
            yield ("high",), f"must lie between low ({self.low}) and certain ({self.certain})"

    def open(self) -> ByteTrack:
        """See `TrackingSettings.open`."""
        return ByteTrack(self, library())


_MOTION = Motion(center_noise=1.5, size_noise=0.3, box_noise=0.03, first_speed=1.0, tau=2.0)
_REACH = TWO
"""Standard deviations of a track's centre by which the gate is widened to each side."""
_WIDEST = HALF
"""Its limit, in box heights."""
_MARGIN = np.array([0.25])
"""Largest distance, in box heights, of pairs that are considered: compensating the camera's motion may bring them
together."""
_OTHER_CLASS = 0.5
"""Factor of the overlap if box and track are of different classes."""
_STILL = 0.02
"""Box heights; a smaller motion of the camera is left to the filter."""
_TOUCH = 1e-9
_FIRST = 2.0
_THREE = np.array([3])
_ROUND = (0.0, 0.0, 0.0, 0.0, 1.0, _FIRST)
"""Round in which a pair is matched, higher ones first, by its box: unused, low score, high score; then the same for
confirmed tracks."""


class ByteTrack(Tracker):
    """See the module.

    Args:
        settings: thresholds and lifetimes.
        native: the compiled step, see `native.library`; None: NumPy.
    """

    def __init__(self, settings: ByteTrackSettings, native: Library | None = None) -> None:
        s = settings
        super().__init__(Life(s.high, s.certain, s.lost_s, s.wall_s, s.outage_s, s.max_tracks), _MOTION)
        self._least, self._camera = s.low, s.camera_motion
        self._low, self._high = np.array([s.low]), np.array([s.high])
        # Boxes that do not touch are never a pair.
        new, weak, strong = (max(gate, _TOUCH) for gate in (s.new_gate, s.weak_gate, s.gate))
        self._cases = np.array([[np.inf, np.inf, new, np.inf, weak, strong], _ROUND])
        if native is not None:
            gates = (s.low, s.high, s.gate, s.weak_gate, s.new_gate, s.camera_motion)
            self.native = NativeStep(native, gates, self._life, _MOTION)

    @property
    def low(self) -> float:
        """See `Tracker.low`."""
        return self._least

    def _associate(
        self, tracks: Matrix, counts: tuple[int, ...], stream: Indices | None, boxes: Boxes, passed: Sequence[float]
    ) -> tuple[Indices, Indices]:
        height, score = tracks[HEIGHT], boxes.score
        reach = np.sqrt(tracks[VARIANCE.start])
        reach *= _REACH
        np.minimum(reach, _WIDEST, out=reach)
        reach *= height
        if stream is None and len(height) * len(score) <= FEW:
            rows, columns = every(len(height), len(score))
        else:
            around = Rectangles.around(tracks, counts, reach * TWO + height * _MARGIN)
            rows, columns = meeting(around, boxes.rectangles())
        # Rank of a pair: by its box 0 unused, 1 low score, 2 high score; plus 3 for a confirmed track.
        use = np.add(score >= self._low, score >= self._high, dtype=np.intp)
        case = use[columns]
        case += ((tracks[ID] > ZERO) * _THREE)[rows]
        gates, rounds = self._cases.take(case, axis=1)
        weight = np.where(rounds == TWO, score[columns], UNIT)
        other = tracks[LEADER][rows] != boxes.class_id[columns]
        if np.count_nonzero(other):
            weight[other] *= _OTHER_CLASS
        pairs = Pairs(rows, columns, tracks, reach, boxes.place)

        def matched() -> list[int]:
            # A pair of an earlier round has a higher key than any of a later one: greedy matching goes round by round.
            worth = pairs.alike()
            worth *= weight
            able = worth >= gates
            worth += rounds
            return match(worth, able, rows, columns, len(height), len(score))

        taken = matched()
        if self._camera and len(taken) >= FEWEST:
            shifts = _shifts(tracks, pairs, taken, rounds, stream, passed)
            if any(right or down for right, down in shifts):
                shift = np.array(shifts).T
                tracks[CENTER] += shift if stream is None else shift.repeat(counts, axis=1)
                pairs.offset -= shift if stream is None else shift.take(stream.take(rows), axis=1)
                taken = matched()
        return rows[taken], columns[taken]


def _shifts(
    tracks: Matrix, pairs: Pairs, taken: list[int], rounds: Matrix, stream: Indices | None, passed: Sequence[float]
) -> list[tuple[float, float]]:
    """The camera's estimated motion in each stream, by confirmed tracks that were in the previous frame and have a high
    score now."""
    chosen = np.array(taken)
    if stream is not None:
        own = pairs.rows[chosen]
        fit = rounds[chosen] == TWO
        fit &= tracks[WALL][own] <= np.array(passed)[stream[own]]
        chosen = chosen[fit]
    known = pairs.rows[chosen]
    x, y = pairs.offset.take(chosen, axis=1).tolist()
    height = tracks[HEIGHT][known].tolist()
    if stream is None:
        rank, wall, dt = rounds[chosen].tolist(), tracks[WALL][known].tolist(), passed[0]
        fits = [i for i in range(len(x)) if rank[i] == _FIRST and wall[i] <= dt]
        x, y, height = [x[i] for i in fits], [y[i] for i in fits], [height[i] for i in fits]
        ends = [len(fits)]
    else:
        ends = np.bincount(stream[known], minlength=len(passed)).cumsum().tolist()
    shifts, start = [], 0
    for end in ends:
        n = end - start
        least = _STILL * sum(height[start:end]) / max(n, 1)
        shifts.append(common_shift(x[start:end], y[start:end], least) if n >= FEWEST else (0.0, 0.0))
        start = end
    return shifts
