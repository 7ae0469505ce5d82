"""ByteTrack's step as compiled code, where it was compiled: `bytetrack.c`. One call for all frames of a batch.

A batch of common scenes keeps the interpreter lock for a few dozen microseconds; one that takes longer lets go of it.

Installing streamd builds it if there is a C compiler. Without it the NumPy implementation runs, with the same results.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from streamd.analysis.compiled import compiled
from streamd.analysis.tracking.observation import EndedTrack, Observation, Tracked, TrackedBatch
from streamd.analysis.tracking.tracks import ID, ROWS, Matrix

if TYPE_CHECKING:
    from streamd.analysis.tracking.batch import Life
    from streamd.analysis.tracking.motion import Motion

_POINTER, _COUNT = ctypes.c_void_p, ctypes.c_int64


CROWD = 64 * 64
"""Pairs of tracks and boxes, of all frames together, from which on a call lets go of the interpreter lock."""


@functools.cache
def library(path: str | None = None) -> tuple[Any, Any] | None:
    """The compiled step: with the interpreter lock, and without; None where there is none.

    Args:
        path: of the file; the one that was built with the package by default.
    """
    built = Path(__file__).with_name("_bytetrack")
    found = [compiled(built, ("bytetrack_batch",), path, hold=hold) for hold in (True, False)]
    steps = [functions[0] for functions in found if functions is not None]
    if len(steps) < len(found):
        return None
    for step in steps:
        step.argtypes = [_POINTER, _COUNT, *[_POINTER] * 11]
        step.restype = None
    return steps[0], steps[1]


class NativeStep:
    """Steps frames of different streams together.

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

    def __call__(
        self, batch: Sequence[Observation], parts: Sequence[Matrix], passed: Sequence[float], observed: Sequence[float]
    ) -> tuple[list[Matrix | None], TrackedBatch]:
        """One frame of each of several streams.

        Args:
            batch: the frames; their state is left alone.
            parts: of each stream its tracks, (ROWS, T).
            passed: seconds since its last frame.
            observed: how many of them count as observed.

        Returns:
            Of each stream the tracks as they are now, None where this is to be left to NumPy; and what is known of the
            boxes.

        Raises:
            ValueError: boxes, scores and classes of a frame do not go together.
        """
        facts: list[int] = []
        bounds, rooms, whole, pairs, known = [0], [], [], 0, 0
        n = 0
        for o, part in zip(batch, parts, strict=True):
            found, tracks = len(o.score), part.shape[1]
            if o.xyxy.shape != (found, 4) or o.class_id.shape != (found,):
                raise ValueError(
                    f"{o.xyxy.shape} boxes, {o.score.shape} scores and {o.class_id.shape} classes do not go together"
                )
            if not part.flags.c_contiguous:
                part = np.ascontiguousarray(part)
            # A stream's own: in one block for all, those of a stream that stands still would keep everything.
            room = np.empty(ROWS * (tracks + found))
            facts += (_address(part), _address(room), tracks, found, 0, 0, 0)
            whole.append(part)
            rooms.append(room)
            n += found
            bounds.append(n)
            known, pairs = known + tracks, pairs + found * tracks
        numbers, times = np.array(facts, np.int64), np.array((passed, observed)).T.copy()
        xyxy, score = _joined([o.xyxy for o in batch], np.float32), _joined([o.score for o in batch], np.float32)
        class_id = _joined([o.class_id for o in batch], np.int32)
        # One block for everything that comes back: asking NumPy for an address takes long.
        velocity, ids, labels, fresh, ended = n, 3 * n, 4 * n, 5 * n, 7 * n
        block = np.empty(ended + 4 * known)
        base = _address(block)
        step = self._quick if pairs < CROWD else self._long
        step(
            self._address, len(batch), _address(numbers), _address(times), _address(xyxy), _address(score),
            _address(class_id), base, base + 8 * velocity, base + 8 * labels, base + 8 * ids, base + 8 * fresh,
            base + 8 * ended,
        )  # fmt: skip
        number, named_of = block[ids:labels].view(np.int64), block[fresh:ended].view(np.int64)
        matrices: list[Matrix | None] = []
        buried: dict[int, tuple[EndedTrack, ...]] = {}
        done, track = numbers.tolist(), ended
        for i, room in enumerate(rooms):
            alive, named, gone = done[7 * i + 4 : 7 * i + 7]
            if alive < 0:
                matrices.append(None)
            else:
                matrix = room[: ROWS * alive].reshape(ROWS, alive)
                if named:
                    first, next_id = bounds[i], batch[i].tracks.ids
                    for column, box in named_of[2 * first : 2 * (first + named)].reshape(named, 2).tolist():
                        matrix[ID, column] = number[first + box] = next(next_id)
                if gone:
                    buried[i] = tuple(_buried(block[track : track + 4 * gone].reshape(gone, 4)))
                matrices.append(matrix)
            track += 4 * done[7 * i + 2]
        joined = Tracked(
            number, number > 0, block[:velocity], block[velocity:ids].reshape(n, 2),
            block[labels:fresh].view(np.int32)[:n],
        )  # fmt: skip
        return matrices, TrackedBatch(joined, bounds, buried)


def _joined(arrays: Sequence[npt.NDArray[Any]], dtype: type[np.generic]) -> npt.NDArray[Any]:
    """One after the other, in this type and without gaps."""
    return np.ascontiguousarray(arrays[0] if len(arrays) == 1 else np.concatenate(arrays), dtype)


def _address(array: np.ndarray[Any, Any]) -> int:
    address: int = array.__array_interface__["data"][0]  # a third of what `ctypes.data` takes
    return address


def _buried(ended: Matrix) -> Iterator[EndedTrack]:
    for number, leader, age, unseen in ended.tolist():
        yield EndedTrack(int(number), "lost", int(leader), age, unseen)
