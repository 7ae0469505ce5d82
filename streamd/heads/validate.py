"""Invalid boxes: left out before suppression, so that they do not suppress valid ones, and counted.

The rules are the same for all heads and devices. Also checks of the first outputs, which detect a wrong export before
anything is published."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from streamd.errors import ModelError
from streamd.types import Candidates, Float32Array, FloatArray

MOST_SCORE = 1 + 1e-3
"""Scores are at most 1, but in reduced precision a sigmoid may reach this value. kernels.cu has the same number."""
LEAST_SIDE = 1e-3
"""Least size of a box, in pixels of the network's input. kernels.cu has the same number."""
FARTHEST = 2.0**20
"""Largest distance of a corner from the origin, in pixels: anything farther is an overflow. kernels.cu has the same
number."""
FEW = 12
"""Up to this number, boxes are checked faster one by one than as arrays."""
REASONS = ("not_finite", "score", "size", "outside")
"""Why a box is left out.

- not_finite: a corner is NaN, infinite or an overflow
- score: above 1, below 0, or not a number
- size: none, or corners in the wrong order
- outside: no part of it is in the picture
"""
NONE: Mapping[str, int] = {}
_LEAST_SIDE = np.float32(LEAST_SIDE)
_least, _most = np.minimum.reduce, np.maximum.reduce
ROUNDING = 1e-3
"""Tolerance for values that should be 0 to 1."""


def possible(found: Candidates) -> tuple[Candidates, Mapping[str, int]]:
    """The valid ones of `found`, in order, and the number of invalid ones by reason. To be called before suppression.

    The position of a box is not checked: a device suppresses without knowing where the picture is.
    """
    if all_possible(found):
        return found, NONE
    xyxy, score, class_id = found.xyxy, found.score, found.class_id
    can = which_can(found)
    if can.all():
        return found, NONE
    bad = ~can
    return found.take(can), _reasons(xyxy[bad], score[bad], class_id[bad])


def all_possible(found: Candidates) -> bool:
    """Whether `possible` leaves none out."""
    xyxy, score, class_id = found.xyxy, found.score, found.class_id
    if len(score) <= FEW:
        # One NumPy call takes as long as this does for eight boxes. All comparisons with NaN are false.
        for (x1, y1, x2, y2), share, number in zip(xyxy.tolist(), score.tolist(), class_id.tolist(), strict=True):
            if not (
                LEAST_SIDE < x2 - x1 < FARTHEST
                and LEAST_SIDE < y2 - y1 < FARTHEST
                and 0 <= share <= MOST_SCORE
                and number >= 0
            ):
                return False
        return True
    # Five reductions over all values cost half as much as masks.
    with np.errstate(invalid="ignore", over="ignore"):
        size = xyxy[:, 2:] - xyxy[:, :2]
    return bool(
        _least(size, axis=None) > LEAST_SIDE
        and _most(size, axis=None) < FARTHEST
        and _most(score) <= MOST_SCORE
        and _least(score) >= 0
        and _least(class_id) >= 0
    )


def which_can(found: Candidates) -> npt.NDArray[np.bool_]:
    """(M,) whether each box is valid: corners within bounds, a size, a score. Comparisons with NaN are false."""
    xyxy, score = found.xyxy, found.score
    can = np.all(np.abs(xyxy) < FARTHEST, axis=1)
    can &= np.all(xyxy[:, 2:] > xyxy[:, :2] + _LEAST_SIDE, axis=1)
    can &= (score <= MOST_SCORE) & (score >= 0) & (found.class_id >= 0)
    return np.asarray(can)


def _reasons(xyxy: Float32Array, score: Float32Array, class_id: npt.NDArray[np.int32]) -> Mapping[str, int]:
    """Counts the first reason of each box. A device gives invalid boxes class -1 and score 0 (kernels.cu)."""
    finite = (np.abs(xyxy) < FARTHEST).all(axis=1)
    sides = (xyxy[:, 2:] > xyxy[:, :2] + _LEAST_SIDE).all(axis=1)
    scored = (score <= MOST_SCORE) & (score >= 0) & ((class_id >= 0) | ~sides)
    which = np.select([~finite, ~scored, ~sides], [0, 1, 2], 3)
    return {REASONS[i]: n for i, n in enumerate(np.bincount(which, minlength=len(REASONS)).tolist()) if n}


def inside(xyxy: Float32Array) -> npt.NDArray[np.bool_] | None:
    """Which boxes still have an area after clipping to the picture; None if all have."""
    if len(xyxy) <= FEW:
        for x1, y1, x2, y2 in xyxy.tolist():
            if not (x2 > x1 and y2 > y1):
                break
        else:
            return None
    there: npt.NDArray[np.bool_] = xyxy[:, 2:] > xyxy[:, :2]
    return None if there.all() else np.asarray(np.all(there, axis=1))


def check_numbers(path: str, *values: FloatArray) -> None:
    """Checks that each of a first frame's outputs, or of their parts, contains finite numbers.

    Raises:
        ModelError: one contains none, only NaN and infinity.
    """
    if not all(np.isfinite(v).any() for v in values):
        raise ModelError(
            f"model {path}: its outputs contain no numbers, only NaN or infinity; it overflows in this precision, or "
            "was damaged. Try it in single precision (fp32), or export it again"
        )


def mostly_outside_unit(rows: FloatArray) -> bool:
    """Whether most rows (…, K) contain a value outside 0 to 1."""
    within = (rows >= -ROUNDING) & (rows <= 1 + ROUNDING)
    return bool(within.all(axis=-1).mean() < 0.5)


def check_class_scores(path: str, kind: str, scores: FloatArray) -> None:
    """Checks a first frame's class scores, (N, C), of a head whose exports end in a sigmoid.

    Raises:
        ModelError: they are no numbers, or not between 0 and 1.
    """
    check_numbers(path, scores)
    if mostly_outside_unit(scores):
        raise ModelError(
            f"model {path}: declared or recognised as {kind}, but its class scores are {span(scores)}, not 0 to 1: "
            "export the model with the sigmoid of its classes"
        )


def largest_finite(values: FloatArray) -> float:
    """The greatest finite number of all; 0 if none is above 0."""
    return float(values[np.isfinite(values)].max(initial=0))


def span(values: FloatArray) -> str:
    """The least and the greatest finite value, for a message."""
    finite = values[np.isfinite(values)]
    return f"{finite.min():.3g} to {finite.max():.3g}" if finite.size else "NaN"
