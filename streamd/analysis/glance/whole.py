"""What the whole of a small picture does at once: light, and a shift of less than a cell or so."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from streamd.analysis.glance import Luma
from streamd.analysis.glance.cells import Levels, reach

LEAST = 0.01
"""A smaller shift, in cells, is none."""


def whole(away: Levels, background: Levels, limits: Levels) -> tuple[Any, Any, tuple[float, float]]:
    """What of the distance from the background the whole picture explains, by least squares on the background, its
    gradients and its Laplacian (Lucas and Kanade, "An Iterative Image Registration Technique", 1981, with one
    reweighting).

    Args:
        away: (ROWS, COLUMNS) distance of each cell from the background.
        background: what is usually there.
        limits: distance of each cell from which it strays.

    Returns:
        What light changes in each cell, what a shift does, and the shift to the right and down in cells; zeros where
        neither explains anything.
    """
    # Every second cell of every second row is enough for five unknowns. Sums are doubles, so that their order does not
    # matter to what comes out.
    mean = np.float32(background.mean(dtype=np.float64))
    basis = _basis(background, 2, mean)
    target, limit = away[::2, ::2].ravel(), limits[::2, ::2].ravel()
    weight = np.minimum(1, limit / np.maximum(np.abs(target), np.float32(0.1)))
    found = _least_squares(basis, target, weight)
    if found is None:
        return 0, 0, (0.0, 0.0)
    left = np.abs(target - _sum(found, basis))
    again = _least_squares(basis, target, weight * (left < 2 * limit))
    found = found if again is None else again
    before = np.minimum(np.abs(target), limit).sum(dtype=np.float64)
    if np.minimum(np.abs(target - _sum(found, basis)), limit).sum(dtype=np.float64) >= before:
        return 0, 0, (0.0, 0.0)
    gain, right, below, soft, offset = found.tolist()
    light = background * np.float32(gain)
    light += np.float32(offset - gain * float(mean))
    shift = -right, -below
    if max(abs(right), abs(below), abs(soft)) < LEAST:
        return light, 0, shift
    return light, _sum(found[1:4], _basis(background, 1, mean)[1:4]).reshape(background.shape), shift


def _sum(factors: Levels, rows: Levels) -> Levels:
    """(N,) `factors` (K,) times `rows` (K, N), added up in the order of the rows."""
    out: Levels = factors[0] * rows[0]
    for factor, row in zip(factors[1:], rows[1:], strict=True):
        out += factor * row
    return out


def _basis(background: Levels, step: int, mean: np.float32) -> Levels:
    """(5, cells) what gain, a shift to the left and up, softness, and an offset add to every `step`-th cell and row."""
    # Without the outermost cells, which have no neighbours to one side: they repeat their own.
    around = np.pad(background, 1, mode="edge")
    rows, columns = background.shape
    at = [
        around[1 + y : 1 + y + rows : step, 1 + x : 1 + x + columns : step]
        for y, x in ((0, 0), (0, -1), (0, 1), (-1, 0), (1, 0))
    ]
    here, left, right, above, below = at
    out = np.empty((5, here.size), np.float32)
    shape = here.shape
    np.subtract(here, mean, out=out[0].reshape(shape))
    np.subtract(right, left, out=out[1].reshape(shape))
    np.subtract(below, above, out=out[2].reshape(shape))
    out[1:3] *= np.float32(0.5)
    # A shift by part of a cell mixes neighbours: the picture is softer, too.
    softer = out[3].reshape(shape)
    np.add(left, right, out=softer)
    softer += above
    softer += below
    softer -= 4 * here
    out[4] = 1
    return out


def _least_squares(basis: Levels, target: Levels, weight: Levels) -> Any:
    """(K,) factors of the rows of `basis` (K, N) that come closest to `target` (N,); None where there are none."""
    weighted = basis.astype(np.float64) * weight
    normal = weighted @ basis.T.astype(np.float64)
    normal[np.diag_indices(len(normal))] += 1e-3 * (np.trace(normal) / len(normal) + 1)
    try:
        return np.linalg.solve(normal, weighted @ target.astype(np.float64)).astype(np.float32)
    except np.linalg.LinAlgError:
        return None


class Shots:
    """What a shaking picture showed some time ago. What is still there does not move."""

    EVERY_NS, AGE_NS, OLDEST_NS = 300_000_000, 400_000_000, 2_000_000_000

    def __init__(self) -> None:
        self._shots: deque[tuple[int, Levels, Levels]] = deque()
        """When, and what each cell and its neighbours showed at least and at most."""
        self.range: tuple[Levels, Levels] | None = None
        """The same of all shots that are old enough; None if there are none."""

    def take(self, luma: Levels | Luma, now_ns: int) -> None:
        """Takes a picture if one is due."""
        shots = self._shots
        if shots and now_ns - shots[-1][0] < self.EVERY_NS:
            return
        while shots and now_ns - shots[0][0] > self.OLDEST_NS:
            shots.popleft()
        old = [shot for shot in shots if now_ns - shot[0] >= self.AGE_NS]
        if old:
            low, high = old[0][1].copy(), old[0][2].copy()
            for _, least, most in old[1:]:
                np.minimum(low, least, out=low)
                np.maximum(high, most, out=high)
            self.range = low, high
        else:
            self.range = None
        shots.append((now_ns, *reach(luma.astype(np.float32))))
