"""The boxes of a batch's frames as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from streamd.analysis.tracking.observation import Observation
from streamd.analysis.tracking.pairs import Rectangles
from streamd.analysis.tracking.tracks import HALF, ZERO, Matrix
from streamd.types import Float32Array

_LARGEST = np.array([1e6])
"""Pixels; a larger box is invalid."""


class Boxes(NamedTuple):
    """The boxes of a batch's frames, one frame after the other."""

    place: Matrix
    """(4, B) centre and size in pixels."""
    corners: Float32Array
    """(4, B) the same as left, top, right, bottom; including NaN."""
    score: Matrix
    """(B,); -1 for an invalid box (no area, not finite)."""
    class_id: Matrix
    """(B,)"""
    counts: tuple[int, ...]
    """Number of boxes of each frame."""

    def rectangles(self) -> Rectangles:
        """Their corners."""
        return Rectangles(self.corners[:2], self.corners[2:], self.counts)


def boxes_of(batch: Sequence[Observation]) -> Boxes:
    """The boxes of a batch; invalid ones get a score of -1."""
    if len(batch) == 1:
        corners, score, class_id = batch[0].xyxy, batch[0].score, batch[0].class_id
    else:
        corners = np.concatenate([o.xyxy for o in batch])
        score = np.concatenate([o.score for o in batch])
        class_id = np.concatenate([o.class_id for o in batch])
    place = np.empty((4, len(score)))
    low, high = corners.T[:2], corners.T[2:]
    np.subtract(high, low, out=place[2:], dtype=np.float64)
    np.add(high, low, out=place[:2], dtype=np.float64)
    place[:2] *= HALF
    scores = score.astype(np.float64)
    sizes = place[2:]
    sound = sizes > ZERO
    sound &= sizes < _LARGEST
    if np.count_nonzero(sound) < sound.size:
        broken = ~sound.all(axis=0)
        # Neither NaN nor infinity passes.
        place[:, broken], scores[broken] = 1.0, -1.0
    return Boxes(place, corners.T, scores, class_id.astype(np.float64), tuple([len(o.score) for o in batch]))
