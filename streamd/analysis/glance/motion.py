"""What moves in a stream's small pictures.

Each cell has a background (a running mean), a past (the same before something came to stand there) and a level of
noise: a running quantile of how far it strays from the background, which takes in sensor noise, the breathing of a
codec at its key frames and flicker. What strays further, from the background and from the past, is moving. What the
whole picture does at once is taken out first: a change of exposure or light (gain and offset) and a shift of less
than a cell (a shaking pole), by least squares on the background, its gradients and its Laplacian (Lucas and Kanade,
"An Iterative Image Registration Technique", 1981, with one reweighting).

The network's answers teach it: where something strays and no box is found, it becomes background sooner and its noise
grows (rain, a burnt-in clock, leaves); where boxes are found, noise shrinks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from streamd.analysis.glance import COLUMNS, ROWS, Glance

Cells = npt.NDArray[np.bool_]
Levels = npt.NDArray[np.float32]

STILL_S, STRAY_S = 1.5, 3.0
"""Time constants of the background, where a cell does not stray and where it does."""
PAST_S = 20.0
"""Time constant of the past, where something covers it."""
PAST_EVERY = 4
"""Pictures from one update of it to the next."""
LEAST_NOISE, FIRST_NOISE, MOST_NOISE = 0.5, 2.0, 40.0
QUANTILE = 0.99
"""Of a cell's distance from the background: key frames are more than one frame in a hundred."""
UP = np.float32(0.25)
DOWN = np.float32(UP * (1 - QUANTILE) / QUANTILE)
LEARN_S = 10.0
"""The noise is found in steps that are larger by `HURRY` at first."""
HURRY = 4.0
LEAST, PER_NOISE = 1.5, 2.0
"""A cell strays beyond this many levels plus this many times its noise."""
MOST_RATIO = 3.0
"""What one cell may contribute: a spark in a single cell is no motion."""
FIT_SHARE = 0.005
"""Beyond this share of straying cells, motion of the whole picture is taken out."""
LIGHT_SHARE = 0.35
"""Beyond this share, it is another picture: a light was switched, the camera turned."""
FIRST_SCORE, LEAST_SCORE, MOST_SCORE = 3.0, 2.5, 8.0
"""The score at which something moves. 3 is one cell far beyond its limit or three just beyond it."""
FALSE_STEP, TRUE_STEP, CALM_STEP = 0.05, 0.02, 0.0005
"""How it changes with a look that found nothing where something moved, one that did, and a still frame."""
ABSORB = np.float32(0.1)
LEARN_NOISE = np.float32(0.15)
RECENT_S = 5.0
"""Where a box was found so shortly ago, the network may only have missed it since."""
SCALE = 15.0
"""The product of sensitivity and score."""


@dataclass(slots=True, frozen=True)
class Moved:
    """What one small picture shows."""

    score: float
    """Of the 3 × 3 cells that stray most: the sum of distances, each as a multiple of its cell's limit."""
    threshold: float
    """The score at which something moves."""
    cells: Cells
    """(ROWS, COLUMNS) which ones stray."""
    share: float
    """Fraction of the cells that do."""
    light: bool = False
    """The whole picture has changed."""
    shift: tuple[float, float] = (0.0, 0.0)
    """By how much it was shifted to the right and down, in cells; 0 where that was not asked."""

    @property
    def moving(self) -> bool:
        """Whether something moves."""
        return self.light or self.score >= self.threshold

    @property
    def faint(self) -> bool:
        """Whether something may be moving."""
        return self.score >= self.threshold / 2


_STILL = np.zeros((ROWS, COLUMNS), np.bool_)
_STILL.setflags(write=False)


class Motion:
    """The motion in one stream. For one thread.

    Args:
        ignored: (ROWS, COLUMNS) cells that do not matter.
        sensitivity: fixed, from 1 to 10; None to find it.
    """

    def __init__(self, ignored: Cells | None = None, sensitivity: float | None = None) -> None:
        self._wanted = None if ignored is None or not ignored.any() else ~ignored
        self._auto = sensitivity is None
        self.threshold = FIRST_SCORE if sensitivity is None else SCALE / sensitivity
        self._background: Levels | None = None
        self._past: Levels
        """The background without what stands still for a while: what comes to light when it leaves is no motion."""
        self._noise = np.full((ROWS, COLUMNS), FIRST_NOISE, np.float32)
        self._limit = np.full((ROWS, COLUMNS), LEAST + PER_NOISE * FIRST_NOISE, np.float32)
        self._distance = np.empty((ROWS, COLUMNS), np.float32)
        self._now_ns = 0
        self._learned_s = 0.0
        self._number = 0
        self._boxed_ns = np.full((ROWS, COLUMNS), -(10**15), np.int64)
        """When a box was last found in a cell."""

    @property
    def sensitivity(self) -> float:
        """1 to 10; see `LookSettings.sensitivity`."""
        return SCALE / self.threshold

    @property
    def learning(self) -> bool:
        """Whether the noise is not known yet."""
        return self._learned_s < LEARN_S

    def reset(self) -> None:
        """The next picture is unrelated to those before. Noise and sensitivity are kept."""
        self._background = None

    def step(self, glance: Glance, now_ns: int | None = None) -> Moved:
        """Compares the next picture with the background, and takes it in.

        Args:
            glance: the picture.
            now_ns: its time, if it is not that of its capture.
        """
        now_ns = glance.captured_ns if now_ns is None else now_ns
        luma = glance.luma.astype(np.float32)
        if self._background is None:
            self._background, self._past, self._now_ns = luma, luma.copy(), now_ns
            return Moved(0.0, self.threshold, _STILL, 0.0, light=True)
        passed_s = min(max((now_ns - self._now_ns) / 1e9, 1e-3), 1.0)
        self._now_ns = now_ns
        self._number += 1
        away = luma - self._background
        away -= np.median(away[::5, ::7])
        distance = np.abs(away, out=self._distance)
        stray = distance > self._limit
        count = int(np.count_nonzero(stray))
        shift = (0.0, 0.0)
        if count > FIT_SHARE * stray.size:
            away, shift = self._settled(away)
            distance = np.abs(away, out=self._distance)
            stray = distance > self._limit
            count = int(np.count_nonzero(stray))
        if count > LIGHT_SHARE * stray.size:
            self._background, self._past = luma, luma.copy()
            return Moved(0.0, self.threshold, stray, count / stray.size, True, shift)
        if count:
            count = self._uncover(luma, away, stray)
        if self._number % PAST_EVERY == 0:
            self._remember(stray, PAST_EVERY * passed_s)
        self._learn(distance, passed_s)
        if self._learned_s < LEARN_S:
            self._learned_s += passed_s
        # The background follows what was taken out, too: that is where the picture is now.
        gain = np.float32(1 - np.exp(-passed_s / STILL_S))
        if count == 0:
            self._background += gain * (luma - self._background)
            self._calm()
            return Moved(0.0, self.threshold, _STILL, 0.0, shift=shift)
        gains = np.where(stray, np.float32(1 - np.exp(-passed_s / STRAY_S)), gain)
        self._background += gains * (luma - self._background)
        if self._wanted is not None:
            stray &= self._wanted
            count = int(np.count_nonzero(stray))
        score = self._score(distance, stray) if count else 0.0
        if score < self.threshold:
            self._calm()
        return Moved(score, self.threshold, stray, count / stray.size, shift=shift)

    def _uncover(self, luma: Levels, away: Levels, stray: Cells) -> int:
        """Takes cells out of `stray` that show the past again; returns how many are left."""
        background = self._background
        assert background is not None
        where = np.flatnonzero(stray)
        flat, past = background.ravel(), self._past.ravel()[where]
        again = np.abs(away.ravel()[where] + flat[where] - past) <= self._limit.ravel()[where]
        shown = where[again]
        stray.ravel()[shown] = False
        flat[shown] = luma.ravel()[shown]
        return len(where) - len(shown)

    def _remember(self, stray: Cells, passed_s: float) -> None:
        """Lets the past follow the background: soon where they agree, slowly where something stands in front."""
        assert self._background is not None
        apart = self._background - self._past
        covered = np.abs(apart) > self._limit
        near, far = (np.float32(1 - np.exp(-passed_s / tau)) for tau in (STILL_S, PAST_S))
        self._past += np.where(stray, np.float32(0), np.where(covered, far, near)) * apart

    def _settled(self, away: Levels) -> tuple[Levels, tuple[float, float]]:
        """`away` without what the whole picture does: gain, offset, and a shift, which is the second result."""
        background = self._background
        assert background is not None
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
        target, limit = away[::2, ::2].ravel(), self._limit[::2, ::2].ravel()
        weight = np.minimum(1, limit / np.maximum(np.abs(target), np.float32(0.1)))
        found = _least_squares(basis, target, weight)
        if found is None:
            return away, (0.0, 0.0)
        left = np.abs(target - found @ basis)
        again = _least_squares(basis, target, weight * (left < 2 * limit))
        found = found if again is None else again
        before = np.minimum(np.abs(target), limit).sum()
        if np.minimum(np.abs(target - found @ basis), limit).sum() >= before:
            return away, (0.0, 0.0)
        gain, right, below, soft, offset = found
        away = away - (gain * level + right * across + below * down + soft * softer + offset)
        return away, (-float(right), -float(below))

    def _learn(self, distance: Levels, passed_s: float) -> None:
        """The noise from this picture. Two of seven are enough; seven, as the distance of key frames rarely is."""
        hurry = self.learning
        if not hurry and self._number % 7 not in (0, 3):
            return
        up, down = (UP * np.float32(HURRY), DOWN * np.float32(HURRY)) if hurry else (UP, DOWN)
        # What strays is something that moves, not noise, unless the network says so; while learning, nobody knows.
        strays = distance > self._noise
        if not hurry:
            strays &= distance <= self._limit
        self._noise += np.where(strays, up, -down)
        self._settle_noise()

    def _settle_noise(self) -> None:
        np.clip(self._noise, LEAST_NOISE, MOST_NOISE, out=self._noise)
        np.multiply(self._noise, np.float32(PER_NOISE), out=self._limit)
        self._limit += np.float32(LEAST)

    def _score(self, distance: Levels, stray: Cells) -> float:
        """Of the 3 × 3 cells that stray most."""
        rows = np.flatnonzero(stray.any(axis=1))
        top, bottom = max(int(rows[0]) - 1, 0), int(rows[-1]) + 2
        part = np.zeros((min(bottom, ROWS) - top + 2, COLUMNS + 2), np.float32)
        ratio = distance[top:bottom] / self._limit[top:bottom]
        np.minimum(ratio, np.float32(MOST_RATIO), out=ratio)
        part[1:-1, 1:-1] = ratio * stray[top:bottom]
        lines = part[:, :-2] + part[:, 1:-1] + part[:, 2:]
        return float((lines[:-2] + lines[1:-1] + lines[2:]).max())

    def _calm(self) -> None:
        if self._auto and self.threshold > FIRST_SCORE:
            self.threshold -= CALM_STEP

    def answer(self, moved: Moved, boxes: Cells) -> None:
        """What the network found in a frame.

        Args:
            moved: what `step` said of the frame.
            boxes: (ROWS, COLUMNS) cells with boxes, somewhat enlarged.
        """
        if self._background is None:
            return
        found = bool(boxes.any())
        if found:
            self._boxed_ns[boxes] = self._now_ns
            noise = self._noise[boxes]
            self._noise[boxes] = np.where(noise > 2 * LEAST_NOISE, noise * np.float32(0.97), noise)
        if moved.light or not moved.share:
            if found:
                self._settle_noise()
            return
        idle = moved.cells & (self._now_ns - self._boxed_ns > RECENT_S * 1e9)
        self._noise[idle] += LEARN_NOISE
        self._settle_noise()
        if self._auto and moved.score >= moved.threshold:
            nothing = not (moved.cells & boxes).any() and bool(idle.any())
            step = FALSE_STEP if nothing else -TRUE_STEP
            self.threshold = min(max(self.threshold + step, LEAST_SCORE), MOST_SCORE)

    def absorb(self, glance: Glance, moved: Moved) -> None:
        """Takes what strays where no box was found into the background sooner."""
        background = self._background
        if background is None or not moved.share:
            return
        idle = moved.cells & (self._now_ns - self._boxed_ns > RECENT_S * 1e9)
        background[idle] += ABSORB * (glance.luma[idle] - background[idle])


def _least_squares(basis: Levels, target: Levels, weight: Levels) -> Any:
    """(K,) factors of the rows of `basis` (K, N) that come closest to `target` (N,); None where there are none."""
    weighted = basis * weight
    normal = (weighted @ basis.T).astype(np.float64)
    normal[np.diag_indices(len(normal))] += 1e-3 * (np.trace(normal) / len(normal) + 1)
    try:
        return np.linalg.solve(normal, (weighted @ target).astype(np.float64)).astype(np.float32)
    except np.linalg.LinAlgError:
        return None
