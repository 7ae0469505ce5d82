"""What the whole of a small picture does at once: light, and a shift of less than a cell or so."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from streamd.analysis.glance.cells import Levels, reach


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
    across, down = np.zeros_like(background), np.zeros_like(background)
    across[:, 1:-1] = (background[:, 2:] - background[:, :-2]) * np.float32(0.5)
    down[1:-1] = (background[2:] - background[:-2]) * np.float32(0.5)
    level = background - background.mean()
    # A shift by part of a cell mixes neighbours: the picture is softer, too.
    softer = np.zeros_like(background)
    softer[1:-1, 1:-1] = background[:-2, 1:-1] + background[2:, 1:-1]
    softer[1:-1, 1:-1] += background[1:-1, :-2] + background[1:-1, 2:] - 4 * background[1:-1, 1:-1]
    # Every second cell of every second row is enough for five unknowns.
    parts = [each[::2, ::2].ravel() for each in (level, across, down, softer)]
    basis = np.stack((*parts, np.ones_like(parts[0])))
    target, limit = away[::2, ::2].ravel(), limits[::2, ::2].ravel()
    weight = np.minimum(1, limit / np.maximum(np.abs(target), np.float32(0.1)))
    found = _least_squares(basis, target, weight)
    if found is None:
        return 0, 0, (0.0, 0.0)
    left = np.abs(target - found @ basis)
    again = _least_squares(basis, target, weight * (left < 2 * limit))
    found = found if again is None else again
    before = np.minimum(np.abs(target), limit).sum()
    if np.minimum(np.abs(target - found @ basis), limit).sum() >= before:
        return 0, 0, (0.0, 0.0)
    gain, right, below, soft, offset = found
    shifted = right * across + below * down + soft * softer
    return gain * level + offset, shifted, (-float(right), -float(below))


def _least_squares(basis: Levels, target: Levels, weight: Levels) -> Any:
    """(K,) factors of the rows of `basis` (K, N) that come closest to `target` (N,); None where there are none."""
    weighted = basis * weight
    normal = (weighted @ basis.T).astype(np.float64)
    normal[np.diag_indices(len(normal))] += 1e-3 * (np.trace(normal) / len(normal) + 1)
    try:
        return np.linalg.solve(normal, (weighted @ target).astype(np.float64)).astype(np.float32)
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

    def take(self, luma: Levels, now_ns: int) -> None:
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
        shots.append((now_ns, *reach(luma)))
