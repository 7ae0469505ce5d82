"""Which boxes are published: by score and class and, where that is wanted, by track.

A tracker sees more boxes than are published. The class of a box is its track's by then."""

from __future__ import annotations

import ctypes
import functools
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from streamd.analysis.compiled import address_of, either_way, joined_bytes
from streamd.analysis.tracking.observation import BoolArray, Int64Array, Tracked, TrackedBatch
from streamd.analysis.tracking.tracks import Matrix
from streamd.types import Float32Array, FoundBatch, Int32Array

_POINTER, _COUNT = ctypes.c_void_p, ctypes.c_int64
SHORT = 2000
"""Up to this number of boxes a call takes less than 20 µs, and keeps the interpreter lock."""


class Chosen(NamedTuple):
    """The boxes to publish of the frames of a batch, one frame after the other."""

    ends: Sequence[int]
    """By frame, how many there are up to its end."""
    xyxy: Float32Array
    """(N, 4) as given."""
    score: Float32Array
    """(N,)"""
    class_id: Int32Array
    """(N,) by the votes of the track."""
    number: Int64Array
    """(N,) the track; 0 without."""
    age_s: Matrix
    """(N,)"""
    velocity: Matrix
    """(N, 2)"""
    kept: BoolArray
    """By given box, whether it is one of these."""


@functools.cache
def library(path: str | None = None) -> tuple[Any, Any] | None:
    """The compiled selection: with the interpreter lock, and without; None where there is none.

    Args:
        path: of the file; the one that was built with the package by default.
    """
    arguments = (_COUNT, _COUNT, _POINTER, _POINTER, _COUNT, _COUNT, *[_POINTER] * 10)
    return either_way(Path(__file__).with_name("_bytetrack"), "select_boxes", arguments, path)


class Selection:
    """Chooses boxes.

    Args:
        floor: (classes,) least score of each class; infinite for classes that are not wanted.
        weak: boxes of confirmed tracks are chosen whatever their score.
        native: the compiled way, see `library`; None: NumPy.
    """

    def __init__(self, floor: Float32Array, weak: bool, native: Any = None) -> None:
        self.floor = np.ascontiguousarray(floor, np.float32)
        self._weak, self._native = weak, native
        self._floors = address_of(self.floor)
        self._choice = array("q", (self._floors, len(self.floor), weak))
        self.address: int = self._choice.buffer_info()[0]
        """Of what the compiled step has to know to choose: `Choice` in frames.c."""

    def __call__(self, boxes: FoundBatch, found: TrackedBatch) -> Chosen:
        """Of the boxes of frames, and what is known of them.

        Raises:
            IndexError: a class without a floor.
        """
        chosen = None if self._native is None or not len(boxes) else self._compiled(boxes, found)
        return self._in_numpy(boxes, found.joined) if chosen is None else chosen

    def _compiled(self, boxes: FoundBatch, found: TrackedBatch) -> Chosen | None:
        bounds, tracks = boxes.bounds, found.joined
        n, frames = bounds[-1], len(bounds) - 1
        columns: bytes | int = found.address
        if not columns:
            each = (tracks.id, tracks.age_s, tracks.velocity, tracks.class_id)
            columns = joined_bytes(each, 36 * n, _TRACKS)
        # Numbers, ages, velocities, corners, scores, classes, ends, and by box whether it is kept.
        last = 7 * n
        block = np.empty(last + frames + (n + 7) // 8)
        base = address_of(block)
        count = self._native[n > SHORT](
            n, frames, array("q", bounds[1:]).tobytes(), self._floors, len(self.floor), self._weak, boxes.address,
            columns, base, base + 8 * n, base + 16 * n, base + 32 * n, base + 48 * n, base + 52 * n,
            base + 8 * (last + frames), base + 8 * last,
        )  # fmt: skip
        if count < 0:
            return None
        floats = block[4 * n : last].view(np.float32)
        return Chosen(
            block[last : last + frames].view(np.int64).tolist(),
            floats[: 4 * count].reshape(count, 4),
            floats[4 * n : 4 * n + count],
            floats[5 * n : 5 * n + count].view(np.int32),
            block[:count].view(np.int64),
            block[n : n + count],
            block[2 * n : 2 * n + 2 * count].reshape(count, 2),
            block[last + frames :].view(np.bool_)[:n],
        )

    def _in_numpy(self, boxes: FoundBatch, found: Tracked) -> Chosen:
        corners, scores, ends = boxes.xyxy, boxes.score, boxes.bounds[1:]
        floor = self.floor[found.class_id]
        kept = scores >= floor
        if self._weak:
            kept |= found.confirmed & (floor < np.inf)
        if np.count_nonzero(kept) == len(kept):
            return Chosen(ends, corners, scores, found.class_id, found.id, found.age_s, found.velocity, kept)
        before = np.concatenate((_NONE, kept.cumsum()))
        return Chosen(
            before[ends].tolist(), corners[kept], scores[kept], found.class_id[kept], found.id[kept], found.age_s[kept],
            found.velocity[kept], kept,
        )  # fmt: skip


_TRACKS = (np.dtype(np.int64), np.dtype(np.float64), np.dtype(np.float64), np.dtype(np.int32))
_NONE = np.zeros(1, np.intp)
