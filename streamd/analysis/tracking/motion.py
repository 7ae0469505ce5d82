"""The motion of boxes: a constant-velocity Kalman filter for each coordinate, in continuous time.

All noise is proportional to the box's height (as in DeepSORT), the same for both coordinates of the centre and for
both of the size. A track therefore needs three variances for the centre and three for the size instead of an 8×8
covariance, a prediction is linear in a track's whole column, and a few operations update all tracks.

The velocity decays with `tau` (an Ornstein-Uhlenbeck process): after a long gap an object is expected near where it
was seen, not far along a line. Process noise is white acceleration, so its variance grows with the cube of a gap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from streamd.analysis.tracking.tracks import (
    AGE,
    BOX,
    ID,
    MOVING,
    ONE,
    ROWS,
    SIZE,
    SPEED,
    UNIT,
    UNSEEN,
    VARIANCE,
    WALL,
    Matrix,
)  # fmt: skip


@dataclass(slots=True, frozen=True)
class Motion:
    """The constants of the filter, in box heights and seconds."""

    center_noise: float
    """Process noise of the centre's velocity: box heights per second, per square root of a second."""
    size_noise: float
    """The same for the size's velocity."""
    box_noise: float
    """Standard deviation of the centre and size of a box with a high score, in box heights."""
    first_speed: float
    """Standard deviation of a new track's velocity, box heights per second."""
    tau: float
    """Seconds after which a velocity has decayed to 1/e."""

    def advance(self, parts: Sequence[Matrix], passed: Sequence[float], observed: Sequence[float]) -> Matrix:
        """See `Dynamics`."""
        steps = np.empty((len(parts), MOVING.stop, MOVING.stop))
        steps[:] = _UNCHANGED
        changes = [self._changes(dt, seen) for dt, seen in zip(passed, observed, strict=True)]
        if len(parts) == 1:
            steps.ravel()[_CHANGED] = changes[0]
        else:
            steps.reshape(len(parts), -1)[:, _CHANGED] = changes
        tracks = np.empty((ROWS, sum([part.shape[1] for part in parts])))
        if len(parts) == 1:
            np.dot(steps[0], parts[0][MOVING], out=tracks[MOVING])
            tracks[ID:] = parts[0][ID:]
            parts = ()
        at = 0
        # One product per stream is faster than row by row with each track's own interval, for few and for many tracks.
        for part, step in zip(parts, steps, strict=False):
            own = slice(at, at + part.shape[1])
            tracks[MOVING, own] = step.dot(part[MOVING])
            tracks[ID:, own] = part[ID:]
            at = own.stop
        # A box shrinks to no less than a pixel.
        sizes = tracks[SIZE]
        np.maximum(sizes, UNIT, out=sizes)
        return tracks

    def _changes(self, dt: float, observed: float) -> tuple[float, ...]:
        """The entries of the matrix of an interval at `_CHANGED`."""
        decay = math.exp(-dt / self.tau)
        travel = self.tau * (1 - decay)
        center, size = self.center_noise**2, self.size_noise**2
        place, mixed = dt**3 / 3, dt**2 / 2
        return (
            travel, travel, travel, travel, decay, decay, decay, decay,
            2 * travel, 2 * travel, travel**2, travel**2, decay, decay, travel * decay, travel * decay,
            decay**2, decay**2,
            center * place, size * place, center * mixed, size * mixed, center * dt, size * dt, observed, dt, observed,
        )  # fmt: skip

    def correct(self, tracks: Matrix, boxes: Matrix, score: Matrix) -> None:
        """See `Dynamics`. The lower a box's score, the less it says about the object's position."""
        n = tracks.shape[1]
        variances = tracks[VARIANCE].reshape(3, 2, n)
        place, mixed, rate = variances
        noise = _DOUBT - score
        noise *= noise
        noise *= self.box_noise**2
        gain = variances[:2] / (place + noise)
        residual = boxes - tracks[BOX]
        state = tracks[BOX.start : SPEED.stop].reshape(2, 2, 2, n)
        state += gain[:, :, None] * residual.reshape(2, 2, n)
        rate -= gain[1] * mixed
        variances[:2] *= UNIT - gain[0]

    def first(self, tracks: Matrix, boxes: Matrix, score: Matrix) -> None:
        """See `Dynamics`."""
        tracks[BOX] = boxes
        place, _, rate = tracks[VARIANCE].reshape(3, 2, -1)
        place[:] = (self.box_noise * (_DOUBT - score)) ** 2
        rate[:] = self.first_speed**2


_DOUBT = np.array([1.5])
"""The noise of a box grows with the distance of its score from this one."""
_UNCHANGED = np.eye(MOVING.stop)
_PLACE, _MIXED, _RATE = VARIANCE.start, VARIANCE.start + 2, VARIANCE.start + 4
_CHANGED = np.ravel_multi_index(
    tuple(
        np.array(
            [
                *((BOX.start + i, SPEED.start + i) for i in range(4)),
                *((SPEED.start + i, SPEED.start + i) for i in range(4)),
                *((_PLACE + i, _MIXED + i) for i in range(2)),
                *((_PLACE + i, _RATE + i) for i in range(2)),
                *((_MIXED + i, _MIXED + i) for i in range(2)),
                *((_MIXED + i, _RATE + i) for i in range(2)),
                *((_RATE + i, _RATE + i) for i in range(2)),
                *((row, ONE) for row in (*range(VARIANCE.start, VARIANCE.stop), UNSEEN, WALL, AGE)),
            ]
        ).T
    ),
    _UNCHANGED.shape,
)
"""(27,) where a step's matrix differs from `_UNCHANGED`, for the flattened matrix."""
