"""Trackers of which only the pairing of tracks and boxes is left to write: the base to start from for a kind of one's
own. `batch` does the rest: births, confirmation, ids, ages, ends, streams that fail."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from streamd.analysis.tracking import TrackingSettings
from streamd.analysis.tracking.batch import Life, Tracker
from streamd.analysis.tracking.boxes import Boxes
from streamd.analysis.tracking.pairs import Indices
from streamd.analysis.tracking.tracks import AGE, BOX, CENTER, ID, LEADER, ONE, SIZE, SPEED, UNSEEN, WALL, Matrix

_SMOOTHED_S = 0.5
"""Seconds over which the velocity is averaged."""


class Still:
    """See `batch.Dynamics`. Boxes stay where they were last seen; the velocity is only reported."""

    def advance(self, parts: Sequence[Matrix], passed: Sequence[float], observed: Sequence[float]) -> Matrix:
        """See `Dynamics`."""
        tracks = np.concatenate(parts, axis=1)
        clocks = np.array((observed, passed, observed)).repeat([part.shape[1] for part in parts], axis=1)
        tracks[UNSEEN:ONE] += clocks[:2]
        tracks[AGE] += clocks[2]
        return tracks

    def correct(self, tracks: Matrix, boxes: Matrix, score: Matrix) -> None:
        """See `Dynamics`."""
        passed = tracks[WALL]
        # Two frames with the same time give no velocity.
        share = -np.expm1(passed / -_SMOOTHED_S) / np.maximum(passed, 1e-9)
        tracks[SPEED] += (boxes - tracks[BOX]) * share - tracks[SPEED] * (share * passed)
        tracks[BOX] = boxes

    def first(self, tracks: Matrix, boxes: Matrix, score: Matrix) -> None:
        """See `Dynamics`."""
        tracks[BOX] = boxes


class Known(NamedTuple):
    """The tracks of one stream before a frame."""

    xyxy: Matrix
    """(T, 4) corners in upright source pixels, where each was last seen."""
    velocity: Matrix
    """(T, 2) of the centre, right and down in pixels per second."""
    class_id: npt.NDArray[np.int64]
    """(T,)"""
    unseen_s: Matrix
    """(T,) seconds since each was last seen."""
    confirmed: npt.NDArray[np.bool_]
    """(T,) False for a track of one uncertain box, which has no id yet."""


class Seen(NamedTuple):
    """The boxes of one frame whose score reaches `low`."""

    xyxy: Matrix
    """(N, 4) corners in upright source pixels."""
    score: Matrix
    """(N,)"""
    class_id: npt.NDArray[np.int64]
    """(N,)"""


class StillTracker(Tracker):
    """A tracker without a motion model.

    Args:
        settings: its thresholds and time limits.
    """

    def __init__(self, settings: TrackingSettings) -> None:
        s = settings
        super().__init__(Life(s.low, s.certain, s.lost_s, s.wall_s, s.outage_s, s.max_tracks), Still())
        self._low = s.low

    @property
    def low(self) -> float:
        """See `Tracker.low`."""
        return self._low


class PairingTracker(StillTracker):
    """A tracker that is told which box continues which track; see `StillTracker`."""

    @abstractmethod
    def pair(self, known: Known, seen: Seen) -> Iterable[tuple[int, int]]:
        """Which boxes continue which tracks. Called with at least one of each.

        Whatever it raises costs the stream its tracks, and no frame.

        Returns:
            Pairs (number of a track, number of a box), each track and each box once at most. Boxes in no pair begin
            tracks.
        """

    def _associate(
        self, tracks: Matrix, counts: tuple[int, ...], stream: Indices | None, boxes: Boxes, passed: Sequence[float]
    ) -> tuple[Indices, Indices]:
        rows: list[int] = []
        columns: list[int] = []
        row = column = 0
        for n, m in zip(counts, boxes.counts, strict=True):
            able = np.flatnonzero(boxes.score[column : column + m] >= self._low) + column
            if n and len(able):
                corners = boxes.corners[:, able].T.astype(np.float64)
                seen = Seen(corners, boxes.score[able], boxes.class_id[able].astype(np.int64))
                # There cannot be more: a generator that never ends would take all memory.
                pairs = list(islice(self.pair(_known(tracks[:, row : row + n]), seen), min(n, len(able)) + 1))
                known, found = [int(pair[0]) for pair in pairs], [int(pair[1]) for pair in pairs]
                _check(known, n, "track")
                _check(found, len(able), "box")
                rows += [row + number for number in known]
                columns += able[found].tolist() if found else []
            row, column = row + n, column + m
        order = np.argsort(np.array(rows, np.intp))
        return np.array(rows, np.intp)[order], np.array(columns, np.intp)[order]


def _known(tracks: Matrix) -> Known:
    half = tracks[SIZE] / 2
    corners = np.concatenate((tracks[CENTER] - half, tracks[CENTER] + half)).T
    # Copies: the rows themselves change with the step.
    speed, unseen_s = tracks[SPEED][:2].T.copy(), tracks[WALL].copy()
    return Known(corners, speed, tracks[LEADER].astype(np.int64), unseen_s, tracks[ID] > 0)


def _check(numbers: list[int], count: int, what: str) -> None:
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"pair names a {what} twice: {numbers}")
    if numbers and not 0 <= min(numbers) <= max(numbers) < count:
        raise ValueError(f"pair names a {what} that does not exist: {numbers}, where there are {count}")
