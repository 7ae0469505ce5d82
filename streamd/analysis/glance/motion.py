"""What moves in a stream's small pictures.

Each cell has a background (a running mean), a past (the same before something came to stand there) and a level of
noise: a running quantile of how far it strays from the background, which takes in sensor noise, the breathing of a
codec at its key frames and flicker. What strays further, from the background and from the past, is moving, as long as
it changes: what has stopped becomes background at once. What the whole picture does is taken out first (`whole`): a
change of exposure or light, and a shift of about a cell (a shaking pole). While the picture shakes, what the
neighbours of a cell show, or showed half a second ago, does not move. Rain and snow are sparks all over the picture:
then only what is solid, or lasts and stands out, moves.

The network's answers teach it: where something strays and no box is found, it becomes background sooner and its noise
grows (rain, a burnt-in clock, leaves); where boxes are found, noise shrinks. `motion.c` does the same, if compiled.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any, NamedTuple

import numpy as np

from streamd.analysis.glance import COLUMNS, ROWS, Glance, Luma
from streamd.analysis.glance.cells import Cells, Levels, beyond, reach
from streamd.analysis.glance.motion_native import Functions, NativeMotion, library
from streamd.analysis.glance.moved import Moved
from streamd.analysis.glance.score import CLUTTER_S, LASTS, RECENT_S, changed, elsewhere, score
from streamd.analysis.glance.sensitivity import Sensitivity
from streamd.analysis.glance.whole import Shots, whole

STILL_S, STRAY_S = 1.5, 3.0
"""Time constants of the background, where a cell does not stray and where it does."""
SHIFT_S = 8.0
"""That of a shift of the whole picture."""
STAND_S = 0.4
"""What strays and has not changed for so long has stopped: it is background from then on."""
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
FIT_SHARE = 0.005
"""Beyond this share of straying cells, motion of the whole picture is taken out."""
LIGHT_SHARE = 0.35
"""Beyond this share, it is another picture: a light was switched, the camera turned."""
ABSORB = np.float32(0.1)
LEARN_NOISE = np.float32(0.15)
LIGHT_ERROR = np.float32(0.25)
"""By which part of itself a change of light may be estimated wrongly in a cell,"""
LIGHT_LEAST = 1.0
"""A change by less does not matter."""
BRIGHT, SPAN = np.float32(180), np.float32(40)
"""and from which level on by more: all of it so many levels higher."""
WHITE, BLACK = 225, 20
"""Levels that do not follow the light."""
SHAKE = 0.12
"""Cells; the picture shakes if it was shifted by more than that, and for `SHAKE_S` after."""
SHAKE_S = 2.0
SWITCH = 8.0
"""Levels by which half of the picture becomes lighter or darker from one frame to the next if a light is switched."""


_STILL = np.zeros((ROWS, COLUMNS), np.bool_)
_STILL.setflags(write=False)


class Seen(NamedTuple):
    """An earlier picture."""

    luma: Luma
    cells: Cells
    """What strayed in it."""


class Motion:
    """The motion in one stream. For one thread.

    Args:
        ignored: (ROWS, COLUMNS) cells that do not matter.
        sensitivity: fixed, from 1 to 10; None to find it.
        native: see `motion_native.library`; None for NumPy.
    """

    def __init__(
        self, ignored: Cells | None = None, sensitivity: float | None = None, native: Functions | bool | None = True
    ) -> None:
        self._wanted = None if ignored is None or not ignored.any() else ~ignored
        self._sensitivity = Sensitivity(sensitivity)
        self._begun = False
        self._background = np.zeros((ROWS, COLUMNS), np.float32)
        self._past = np.zeros((ROWS, COLUMNS), np.float32)
        """The background without what stands still for a while."""
        self._level = 0.0
        """By how much half of the last picture was lighter than the background."""
        self._switched = False
        """Whether that has just changed by more than `SWITCH`."""
        self._noise = np.full((ROWS, COLUMNS), FIRST_NOISE, np.float32)
        self._limit = np.full((ROWS, COLUMNS), LEAST + PER_NOISE * FIRST_NOISE, np.float32)
        self._distance = np.zeros((ROWS, COLUMNS), np.float32)
        self._now_ns = self._passed_ns = 0
        self._learned_s = 0.0
        self._number = 0
        self._before: deque[Cells] = deque([_STILL] * LASTS, LASTS)
        """What strayed in the last pictures, the latest first."""
        self._stand = np.zeros((ROWS, COLUMNS), np.float32)
        """What each straying cell showed when it last changed, and when that was."""
        self._stand_ns = np.zeros(ROWS * COLUMNS, np.int64)
        self._shaken_ns = -(10**15)
        self._shots = Shots()
        self._cluttered_ns = -(10**15)
        """When it last rained."""
        self._boxed_ns = np.full((ROWS, COLUMNS), -(10**15), np.int64)
        """When a box was last found in a cell."""
        functions = library() if native is True else (native or None)
        self._native = None if functions is None else NativeMotion(functions, self, float(UP), float(DOWN))

    @property
    def sensitivity(self) -> float:
        """See `Sensitivity.value`."""
        return self._sensitivity.value

    @property
    def threshold(self) -> float:
        """The score from which on something moves."""
        return self._sensitivity.threshold

    @property
    def learning(self) -> bool:
        """Whether the noise is not known yet."""
        return self._learned_s < LEARN_S

    @property
    def shaken(self) -> bool:
        """Whether the picture shakes."""
        return self._now_ns - self._shaken_ns < SHAKE_S * 1e9

    @property
    def cluttered(self) -> bool:
        """Whether it rains or snows."""
        last_ns = self._cluttered_ns if self._native is None else self._native.cluttered_ns
        return self._now_ns - last_ns < CLUTTER_S * 1e9

    def reset(self) -> None:
        """The next picture is unrelated to those before. Noise and sensitivity are kept."""
        self._begun = False

    def step(self, glance: Glance, now_ns: int | None = None) -> Moved:
        """Compares the next picture with the background, and takes it in.

        Args:
            glance: the picture.
            now_ns: its time, if it is not that of its capture.
        """
        now_ns = glance.captured_ns if now_ns is None else now_ns
        if not self._begun:
            self._now_ns = now_ns
            self._begin(glance.luma)
            return Moved(0.0, self.threshold, _STILL, 0.0, light=True)
        passed_s = min(max((now_ns - self._now_ns) / 1e9, 1e-3), 1.0)
        self._passed_ns, self._now_ns = now_ns - self._now_ns, now_ns
        self._number += 1
        if self._native is not None:
            return self._native.step(self, glance.luma, passed_s)
        luma = glance.luma.astype(np.float32)
        away, steady, light, shifted, shift = self._compared(luma)
        distance = self._distance
        stray = distance > self._limit
        count = int(np.count_nonzero(stray))
        if count > LIGHT_SHARE * stray.size or self._switched:
            self._begin(luma)
            return Moved(0.0, self.threshold, stray, count / stray.size, True, shift)
        if count:
            count = self._settle(away, steady, stray, distance)
        if self._number % PAST_EVERY == 0:
            self._remember(stray, PAST_EVERY * passed_s)
        self._learn(distance, passed_s)
        if self._learned_s < LEARN_S:
            self._learned_s += passed_s
        self._follow(away, light, shifted, stray if count else None, passed_s)
        if count and self.shaken:
            # What comes into a shaking picture at its edge was outside of it before.
            stray[:1] = stray[-1:] = stray[:, :1] = stray[:, -1:] = False
            count = int(np.count_nonzero(stray))
        if self._wanted is not None:
            stray &= self._wanted
            count = int(np.count_nonzero(stray))
        most, place = self._score(distance, stray) if count else (0.0, 0)
        self._before.appendleft(stray)
        if most < self.threshold:
            self._sensitivity.calm()
        return Moved(most, self.threshold, stray, count / stray.size, shift=shift, place=place, shaken=self.shaken)

    def _begin(self, luma: Levels | Luma) -> None:
        """The background begins with a picture."""
        self._background[:] = self._past[:] = luma
        self._begun = True
        self._unrelated()

    def _unrelated(self) -> None:
        """What was seen before says nothing of the pictures to come."""
        self._level = 0.0
        self._before.extend([_STILL] * LASTS)
        self._shots = Shots()
        if self._native is not None:
            self._native.begin(_STILL)

    def _compared(self, luma: Levels) -> tuple[Levels, Levels, Any, Any, tuple[float, float]]:
        """Sets `_distance`.

        Returns:
            How far each cell is from the background, without what the whole picture does; the same without what light
            does; what light does in each cell, or in all; what a shift does; and the shift.
        """
        background = self._background
        away = luma - background
        light: Any = np.median(away[::5, ::7])
        self._switched = bool(abs(light - self._level) > SWITCH)
        self._level = float(light)
        away -= light
        distance = np.abs(away, out=self._distance)
        if np.count_nonzero(distance > self._limit) <= FIT_SHARE * distance.size:
            return away, away.copy(), light, 0, (0.0, 0.0)
        bright, shifted, shift = whole(away, background, self._limit)
        steady = away - bright
        light = bright + light
        away = steady - shifted
        if shift != (0.0, 0.0):
            # The background says nothing of a shift where something has stopped in front of it: none makes motion.
            worse = np.abs(away) > np.abs(steady)
            away[worse] = steady[worse]
            shifted = np.where(worse, np.float32(0), shifted)
        # What is white or black already cannot follow the light, and less so does what is nearly white.
        stuck = ((away < 0) & (luma >= WHITE)) | ((away > 0) & (luma <= BLACK))
        away[stuck] = 0
        light = np.where(stuck, luma - background, light)
        np.abs(away, out=distance)
        change = np.abs(light)
        if change.max() > LIGHT_LEAST:
            distance -= np.clip((np.maximum(luma, background) - BRIGHT) / SPAN, LIGHT_ERROR, 1) * change
        if max(abs(shift[0]), abs(shift[1])) > SHAKE:
            self._shaken_ns = self._now_ns
        if self.shaken:
            np.minimum(distance, beyond(steady + background, *reach(background)), out=distance)
            self._shots.take(luma, self._now_ns)
            if self._shots.range is not None:
                np.minimum(distance, beyond(luma, *self._shots.range), out=distance)
        return away, steady, light, shifted, shift

    def _follow(self, away: Levels, light: Any, shifted: Any, stray: Cells | None, passed_s: float) -> None:
        """Lets the background follow the picture: also the light, and slowly a shift, so that it stays sharp where a
        pole shakes."""
        background = self._background
        gain = np.float32(1 - math.exp(-passed_s / STILL_S))
        lit = light * gain
        if self.shaken:
            gain = np.float32(1 - math.exp(-passed_s / PAST_S))
        if stray is None:
            away *= gain
        else:
            away *= np.where(stray, np.float32(1 - math.exp(-passed_s / STRAY_S)), gain)
            self._stand += lit
        away += lit
        background += away
        self._past += lit
        background += np.float32(1 - math.exp(-passed_s / SHIFT_S)) * shifted

    def _settle(self, away: Levels, steady: Levels, stray: Cells, distance: Levels) -> int:
        """Takes cells out of `stray` that show the past again, or do not change any more; returns how many are left.
        What shifts the background does not shift what stands in front of it: `steady` is without the light only."""
        background = self._background
        where = np.flatnonzero(stray)
        level = background.ravel()[where] + steady.ravel()[where]
        limit = self._limit.ravel()[where]
        stand, stand_ns = self._stand.ravel(), self._stand_ns
        changed = np.abs(level - stand[where]) > limit
        changed |= ~self._before[0].ravel()[where]
        moving = where[changed]
        stand[moving], stand_ns[moving] = level[changed], self._now_ns
        gone = np.abs(level - self._past.ravel()[where]) <= limit
        gone |= self._now_ns - stand_ns[where] > STAND_S * 1e9
        settled = where[gone]
        background.ravel()[settled] = level[gone]
        stray.ravel()[settled] = False
        away.ravel()[settled] = distance.ravel()[settled] = 0
        return len(where) - len(settled)

    def _remember(self, stray: Cells, passed_s: float) -> None:
        """Lets the past follow the background: soon where they agree, slowly where something stands in front."""
        apart = self._background - self._past
        covered = np.abs(apart) > self._limit
        near, far = (np.float32(1 - math.exp(-passed_s / tau)) for tau in (STILL_S, PAST_S))
        self._past += np.where(stray, np.float32(0), np.where(covered, far, near)) * apart

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

    def _score(self, distance: Levels, stray: Cells) -> tuple[float, int]:
        """See `score.score`."""
        found = score(
            distance, self._limit, stray, self._before, self._stand_ns, self._boxed_ns, self._now_ns, self._passed_ns,
            self.threshold, self._cluttered_ns,
        )  # fmt: skip
        self._cluttered_ns = found[2]
        return found[:2]

    def beyond(self, moved: Moved, seen: Seen | None, boxes: Cells | None) -> bool:
        """Whether something moves, in the picture of the last `step`, outside of boxes and away from what moved in an
        earlier one.

        Args:
            moved: what `step` said.
            seen: the earlier one; None: wherever something moved before.
            boxes: (ROWS, COLUMNS) cells in boxes; None if there are none.
        """
        before = None if seen is None else seen.cells
        if self._native is not None:
            return self._native.elsewhere(moved.cells, before, boxes) >= self.threshold
        return elsewhere(self._distance, self._limit, moved.cells, before, boxes) >= self.threshold

    def changed(self, luma: Luma, moved: Moved, seen: Seen) -> float:
        """How much the picture of the last `step` differs from an earlier one, see `score.changed`."""
        if self._native is not None:
            return self._native.changed(luma, moved.cells, *seen)
        return changed(self._limit, luma, moved.cells, *seen)

    def answer(self, moved: Moved, boxes: Cells, moving: Cells | None = None) -> None:
        """What the network found in a frame.

        Args:
            moved: what `step` said of the frame.
            boxes: (ROWS, COLUMNS) cells with boxes, somewhat enlarged.
            moving: those of objects that move; None where that is not known.
        """
        if not self._begun:
            return
        where = boxes if moving is None else moving
        if self._native is not None:
            told = not moved.light and moved.share > 0
            self._native.answer(boxes, where, moved.cells if told else None, self._now_ns)
        else:
            self._answer(moved, boxes, where)
        self._sensitivity.answered(moved, boxes, where)

    def _answer(self, moved: Moved, boxes: Cells, where: Cells) -> None:
        if found := boxes.any():
            self._boxed_ns[boxes] = self._now_ns
            noise = self._noise[where]
            self._noise[where] = np.where(noise > 2 * LEAST_NOISE, noise * np.float32(0.97), noise)
        if moved.light or not moved.share:
            if found:
                self._settle_noise()
            return
        idle = moved.cells & (self._now_ns - self._boxed_ns > RECENT_S * 1e9)
        self._noise[idle] += LEARN_NOISE
        self._settle_noise()

    def absorb(self, glance: Glance, moved: Moved) -> None:
        """Takes what strays where no box was found into the background sooner."""
        background = self._background
        if not self._begun or not moved.share:
            return
        if self._native is not None:
            self._native.absorb(moved.cells, glance.luma, self._now_ns)
            return
        idle = moved.cells & (self._now_ns - self._boxed_ns > RECENT_S * 1e9)
        background[idle] += ABSORB * (glance.luma[idle] - background[idle])
