"""A step of `motion.Motion` and what goes with it as compiled code, where it was compiled: `motion.c`, `whole.c`,
`score.c` and `boxes.c`.

A step takes a few microseconds and keeps the interpreter lock. One that asks what the whole picture does takes longer
and lets go of it.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from streamd.analysis.compiled import address_of, compiled
from streamd.analysis.glance import COLUMNS, ROWS, Luma
from streamd.analysis.glance.cells import Cells, Levels
from streamd.analysis.glance.moved import Moved

if TYPE_CHECKING:
    from streamd.analysis.glance.motion import Motion

_POINTER, _COUNT, _REAL = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
_FIT, _SHAKEN, _ANEW = 1, 2, 3
"""What a step returns; see motion.c."""
_SHORT = (
    "motion_step",
    "motion_answer",
    "motion_absorb",
    "motion_warm",
    "glance_boxes",
    "glance_changed",
    "glance_elsewhere",
)
_ARRAYS = ("background", "past", "noise", "limit", "distance", "stand")
_ROOM = ("away", "light", "shifted", "steady", "basis")


class Functions(NamedTuple):
    """The functions of motion.c."""

    step: Any
    fit: Any
    shaken: Any
    answer: Any
    absorb: Any
    warm: Any
    boxes: Any
    changed: Any
    elsewhere: Any


@functools.cache
def library(path: str | None = None) -> Functions | None:
    """The compiled functions; None where there are none.

    Args:
        path: of the file; the one that was built with the package by default.
    """
    built = Path(__file__).with_name("_glance")
    short = compiled(built, _SHORT, path, hold=True)
    long = compiled(built, ("motion_fit", "motion_shaken"), path)
    if short is None or long is None:
        return None
    (step, answer, absorb, warm, boxes, changed, elsewhere), (fit, shaken) = short, long
    for function in (step, fit, shaken):
        function.argtypes = [_POINTER, _POINTER, _POINTER]
        function.restype = ctypes.c_int
    answer.argtypes, answer.restype = [_POINTER] * 4, None
    absorb.argtypes, absorb.restype = [_POINTER] * 3, None
    warm.argtypes, warm.restype = [_POINTER, _POINTER, ctypes.c_float], None
    boxes.argtypes = [_POINTER, _COUNT, _COUNT, _COUNT, ctypes.c_int, ctypes.c_int, _POINTER]
    boxes.restype = None
    for function in (changed, elsewhere):
        function.argtypes, function.restype = [_POINTER] * 5, _REAL
    return Functions(step, fit, shaken, answer, absorb, warm, boxes, changed, elsewhere)


def warm(heat: Levels, cells: Cells, by: float, functions: Functions | bool | None = True) -> None:
    """Lets a map of how often each cell strays follow `cells` by this part of the distance."""
    functions = library() if functions is True else functions
    if functions:
        functions.warm(address_of(heat), address_of(cells), by)
    else:
        heat += np.float32(by) * (cells - heat)


class _State(ctypes.Structure):
    """In the order of motion.c."""

    _fields_ = (
        *((name, _POINTER) for name in (*_ARRAYS, *_ROOM, "stand_ns", "boxed_ns", "wanted")),
        ("before", _POINTER * 3),
        *((name, _POINTER) for name in ("low", "high")),
        *((name, _COUNT) for name in ("now_ns", "passed_ns", "shaken_ns", "number", "cluttered_ns")),
        *((name, _REAL) for name in ("passed_s", "threshold", "level", "learned_s", "up", "down", "score")),
        ("shift", _REAL * 2),
        *((name, _COUNT) for name in ("count", "place", "switched", "fitted")),
        ("lit", _REAL),
    )


class NativeMotion:
    """What the compiled code needs of a `Motion`, whose arrays stay where they are.

    Args:
        functions: see `library`.
        motion: whose arrays these are.
        up: step of the noise where a cell strays.
        down: the same where it does not.
    """

    def __init__(self, functions: Functions, motion: Motion, up: float, down: float) -> None:
        self._functions = functions
        self._room = np.empty((len(_ROOM), ROWS, COLUMNS), np.float32)
        state = self._state = _State()
        for name in (*_ARRAYS, "stand_ns", "boxed_ns"):
            setattr(state, name, address_of(getattr(motion, f"_{name}")))
        for name, part in zip(_ROOM, self._room, strict=True):
            setattr(state, name, address_of(part))
        state.wanted = None if motion._wanted is None else address_of(motion._wanted)
        state.up, state.down, state.cluttered_ns = up, down, motion._cluttered_ns
        self._at = ctypes.addressof(state)

    @property
    def cluttered_ns(self) -> int:
        """See `Motion`."""
        return int(self._state.cluttered_ns)

    def begin(self, cells: Cells) -> None:
        """The background begins anew: `cells` is what strayed in the pictures before."""
        self._state.before[:] = [address_of(cells)] * len(self._state.before)

    def step(self, motion: Motion, luma: Luma, passed_s: float) -> Moved:
        """See `Motion.step`, from the comparison on."""
        s = self._state
        s.now_ns, s.passed_ns, s.shaken_ns, s.number = (
            motion._now_ns, motion._passed_ns, motion._shaken_ns, motion._number,
        )  # fmt: skip
        s.passed_s, s.threshold, s.level, s.learned_s = passed_s, motion.threshold, motion._level, motion._learned_s
        stray = np.empty((ROWS, COLUMNS), np.bool_)
        picture, cells = address_of(luma), address_of(stray)
        done = self._functions.step(self._at, picture, cells)
        if done == _FIT:
            done = self._functions.fit(self._at, picture, cells)
            motion._shaken_ns = s.shaken_ns
            if done == _SHAKEN:
                motion._shots.take(luma, motion._now_ns)
                found = motion._shots.range
                s.low, s.high = (None, None) if found is None else (address_of(found[0]), address_of(found[1]))
                done = self._functions.shaken(self._at, picture, cells)
        motion._level, motion._switched = s.level, bool(s.switched)
        right, down = s.shift
        share = s.count / stray.size
        if done == _ANEW:
            motion._unrelated()
            return Moved(0.0, motion.threshold, stray, share, True, (right, down))
        motion._learned_s = s.learned_s
        before = s.before
        before[2], before[1], before[0] = before[1], before[0], cells
        motion._before.appendleft(stray)
        if s.score < motion.threshold:
            motion._sensitivity.calm()
        return Moved(s.score, motion.threshold, stray, share, shift=(right, down), place=s.place, shaken=motion.shaken)

    def answer(self, boxes: Cells, moving: Cells, cells: Cells | None, now_ns: int) -> None:
        """What an answer says of the noise; see `Motion.answer`.

        Args:
            boxes: cells with boxes.
            moving: those whose noise shrinks.
            cells: what strayed; None if that says nothing.
            now_ns: of the last step.
        """
        self._state.now_ns = now_ns
        self._functions.answer(
            self._at, address_of(boxes), address_of(moving), None if cells is None else address_of(cells)
        )

    def absorb(self, cells: Cells, luma: Luma, now_ns: int) -> None:
        """See `Motion.absorb`."""
        self._state.now_ns = now_ns
        self._functions.absorb(self._at, address_of(cells), address_of(luma))

    def changed(self, luma: Luma, cells: Cells, seen: Luma, seen_cells: Cells) -> float:
        """See `score.changed`."""
        arrays = (luma, cells, seen, seen_cells)
        return float(self._functions.changed(self._state.limit, *map(address_of, arrays)))

    def elsewhere(self, cells: Cells, seen_cells: Cells | None, boxes: Cells | None) -> float:
        """See `score.elsewhere`."""
        s = self._state
        arrays = (None if each is None else address_of(each) for each in (cells, seen_cells, boxes))
        return float(self._functions.elsewhere(s.distance, s.limit, *arrays))
