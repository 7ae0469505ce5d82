"""ByteTrack's step as compiled code, where it was compiled: `bytetrack.c`.

A step of a common scene takes a few microseconds and keeps the interpreter lock; one of a crowd lets go of it.

Installing streamd builds it if there is a C compiler. Without it the NumPy implementation runs, with the same results.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streamd.analysis.compiled import compiled
from streamd.analysis.tracking.observation import EndedTrack, Observation, Tracked
from streamd.analysis.tracking.tracks import ID, ROWS, Matrix

if TYPE_CHECKING:
    from streamd.analysis.tracking.batch import Life
    from streamd.analysis.tracking.motion import Motion

_POINTER, _COUNT, _REAL = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double


CROWD = 64 * 64
"""Pairs of tracks and boxes from which on a step lets go of the interpreter lock."""


@functools.cache
def library(path: str | None = None) -> tuple[Any, Any] | None:
    """The compiled step: with the interpreter lock, and without; None where there is none.

    Args:
        path: of the file; the one that was built with the package by default.
    """
    built = Path(__file__).with_name("_bytetrack")
    found = [compiled(built, ("bytetrack_step",), path, hold=hold) for hold in (True, False)]
    steps = [functions[0] for functions in found if functions is not None]
    if len(steps) < len(found):
        return None
    for step in steps:
        step.argtypes = [
            _POINTER, _POINTER, _COUNT, _COUNT, _REAL, _REAL, _POINTER, _POINTER, _POINTER, _COUNT,
            _POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER,
        ]  # fmt: skip
        step.restype = ctypes.c_int
    return steps[0], steps[1]


class NativeStep:
    """Steps one stream at a time.

    Args:
        steps: see `library`.
        gates: low, high, gate, weak_gate and new_gate of the settings, and whether the camera's motion is compensated.
        life: how long tracks live.
        motion: the filter's constants.
    """

    def __init__(
        self, steps: tuple[Any, Any], gates: tuple[float, float, float, float, float, bool], life: Life, motion: Motion
    ) -> None:
        low, high, gate, weak_gate, new_gate, camera = gates
        m = motion
        self._quick, self._long = steps
        values = (
            low, high, life.certain, gate, weak_gate, new_gate, life.lost_s, life.wall_s, life.most, camera,
            m.center_noise, m.size_noise, m.box_noise, m.first_speed, m.tau,
        )  # fmt: skip
        self._settings = np.array(values, np.float64)
        self._address = self._settings.ctypes.data
        self._counts = np.empty(3, np.int64)
        self._counts_address = self._counts.ctypes.data

    def __call__(self, o: Observation, tracks: Matrix, dt: float, observed: float) -> tuple[Matrix, Tracked] | None:
        """One frame.

        Args:
            o: the frame; its state is left alone.
            tracks: of the stream, (ROWS, T).
            dt: seconds since its last frame.
            observed: how many of them count as observed.

        Returns:
            The tracks as they are now, and what is known of the boxes; None where this is to be left to NumPy.
        """
        xyxy = np.ascontiguousarray(o.xyxy, np.float32)
        score = np.ascontiguousarray(o.score, np.float32)
        class_id = np.ascontiguousarray(o.class_id, np.int32)
        n, known = score.size, tracks.shape[1]
        if xyxy.shape != (n, 4) or class_id.shape != (n,):
            raise ValueError(
                f"{xyxy.shape} boxes, {score.shape} scores and {class_id.shape} classes do not go together"
            )
        if tracks.strides[1] != 8:
            tracks = np.ascontiguousarray(tracks)
        # One block for everything that comes back: asking NumPy for an address takes longer than the step itself.
        columns = known + n
        age = ROWS * columns
        velocity, ids, labels, fresh, ended = age + n, age + 3 * n, age + 4 * n, age + 5 * n, age + 7 * n
        block = np.empty(ended + 4 * known)
        base = _address(block)
        step = self._quick if known * n < CROWD else self._long
        if step(
            self._address, _address(tracks), tracks.strides[0] // 8, known, dt, observed,
            _address(xyxy), _address(score), _address(class_id), n,
            base, base + 8 * age, base + 8 * velocity, base + 8 * labels, base + 8 * ids,
            base + 8 * fresh, base + 8 * ended, self._counts_address,
        ):  # fmt: skip
            return None
        alive, named, gone = self._counts.tolist()
        out, numbers = block[:age].reshape(ROWS, columns)[:, :alive], block[ids:ended].view(np.int64)
        for column, box in numbers[2 * n : 2 * n + 2 * named].reshape(named, 2).tolist():
            out[ID, column] = numbers[box] = next(o.tracks.ids)
        number = numbers[:n]
        buried = tuple(_buried(block[ended : ended + 4 * gone].reshape(gone, 4))) if gone else ()
        tracked = Tracked(
            number, number > 0, block[age:velocity], block[velocity:ids].reshape(n, 2),
            numbers[n : 2 * n].view(np.int32)[:n], buried,
        )  # fmt: skip
        return out, tracked


def _address(array: np.ndarray[Any, Any]) -> int:
    address: int = array.__array_interface__["data"][0]  # a third of what `ctypes.data` takes
    return address


def _buried(ended: Matrix) -> Iterator[EndedTrack]:
    for number, leader, age, unseen in ended.tolist():
        yield EndedTrack(int(number), "lost", int(leader), age, unseen)
