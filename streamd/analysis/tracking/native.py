"""ByteTrack's step as compiled code, where it was compiled: `bytetrack.c`. One call for all frames of a batch.

A batch of common scenes keeps the interpreter lock for a few dozen microseconds; one that takes longer lets go of it.

Installing streamd builds it if there is a C compiler. Without it the NumPy implementation runs, with the same results.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streamd.analysis.compiled import address_of, either_way
from streamd.analysis.tracking.observation import (
    EndedTrack,
    EndReason,
    Int64Array,
    ObservationBatch,
    Tracked,
    TrackedBatch,
)
from streamd.analysis.tracking.tracks import COUNT, ID, ROOM, Matrix

if TYPE_CHECKING:
    from streamd.analysis.tracking.batch import Life
    from streamd.analysis.tracking.motion import Motion

_POINTER, _COUNT = ctypes.c_void_p, ctypes.c_int64


SHORT_NS = 60_000.0
"""A call that is expected to take longer lets go of the interpreter lock. To get it back costs more than a step of
45 µs: beside 16 decoding threads, batches had a median of 0.5 to 8.4 ms where it was let go, 0.3 to 0.5 where it was
kept. Rates of whole runs on two cores did not tell (`tools/bench_tracking.py --decoders`)."""
_FRAME_NS, _BOX_NS, _PAIR_NS = 300.0, 45.0, 1.2
"""What a frame, a box or track, and a pair of both take, measured on traffic: 20 boxes and 22 tracks a frame."""
_PER_FRAME = 12
"""Numbers of a frame: `Frame` in bytetrack.c."""


@functools.cache
def library(path: str | None = None) -> tuple[Any, Any] | None:
    """The compiled step: with the interpreter lock, and without; None where there is none.

    Args:
        path: of the file; the one that was built with the package by default.
    """
    arguments = (_POINTER, _COUNT, *[_POINTER] * 9)
    return either_way(Path(__file__).with_name("_bytetrack"), "bytetrack_frames", arguments, path)


@functools.lru_cache(maxsize=256)
def _packed(frames: int) -> Callable[..., bytes]:
    return struct.Struct(f"{_PER_FRAME * frames}q").pack


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
            low, high, life.certain, gate, weak_gate, new_gate, life.lost_s, life.wall_s, life.outage_s, life.most,
            camera, m.center_noise, m.size_noise, m.box_noise, m.first_speed, m.tau,
        )  # fmt: skip
        self._settings = np.array(values, np.float64)
        self._address = self._settings.ctypes.data

    def __call__(self, batch: ObservationBatch) -> tuple[TrackedBatch, list[int]]:
        """One frame of each of several streams, whose state is replaced.

        Returns:
            What is known of the boxes; and the frames that are left to NumPy, whose streams are as they were: those
            with too many tracks.
        """
        facts: list[int] = []
        bounds, frames = batch.boxes.bounds, len(batch.frames)
        known = pairs = first = 0
        for (state, time_ns, missed, begin, width, height, roi), end in zip(batch.frames, bounds[1:], strict=True):
            found, count = end - first, state.facts[COUNT]
            first = end
            if count + found > state.facts[ROOM]:
                state.reserve(count + found)
            facts += (state.address, time_ns, missed, 0 if begin is None else _WHY.index(begin), found, width, height)
            facts += _WHOLE if roi is None else (1, *roi)
            known, pairs = known + count, pairs + found * count
        # One block for everything that comes back: asking NumPy for an address takes long.
        n = first
        age, labels, fresh, told, ended = n, 4 * n, 5 * n, 7 * n, 7 * n + _TOLD * frames
        block = np.empty(ended + 4 * known)
        base = address_of(block)
        expected_ns = _FRAME_NS * frames + _BOX_NS * (n + known) + _PAIR_NS * pairs
        step = self._quick if expected_ns < SHORT_NS else self._long
        some = step(
            self._address, frames, _packed(frames)(*facts), batch.boxes.address, base + 8 * age, base + 16 * n, base,
            base + 8 * labels, base + 8 * fresh, base + 8 * ended, base + 8 * told,
        )  # fmt: skip
        number, class_id = block[:age].view(np.int64), block[labels:fresh].view(np.int32)[:n]
        left, buried = self._told(batch, some, block[fresh:], number) if some else ([], {})
        joined = Tracked(number, block[age : 2 * n], block[2 * n : labels].reshape(n, 2), class_id)
        return TrackedBatch(joined, bounds, buried, address=base), left

    def _told(
        self, batch: ObservationBatch, some: int, block: Matrix, number: Int64Array
    ) -> tuple[list[int], dict[int, tuple[EndedTrack, ...]]]:
        """What is told of `some` frames: those that are left to NumPy, and the tracks that ended with others. Gives
        ids."""
        bounds = batch.boxes.bounds
        n = bounds[-1]
        columns, begin = block[: 2 * n].view(np.int64), 2 * n + _TOLD * len(batch)
        left, buried = [], {}
        told = block[2 * n : 2 * n + _TOLD * some].view(np.int64).reshape(some, _TOLD)
        for i, is_left, named, gone, why in told.tolist():
            if is_left:
                left.append(i)
            if named:
                first, state = bounds[i], batch.frames[i][0]
                ids, matrix = state.ids, state.matrix
                for column, box in columns[2 * first : 2 * (first + named)].reshape(named, 2).tolist():
                    matrix[ID, column] = number[first + box] = next(ids)
            if gone:
                buried[i] = tuple(_buried(block[begin : begin + 4 * gone].reshape(gone, 4), _WHY[why]))
                begin += 4 * gone
        return left, buried


_WHOLE = (0, 0, 0, 0, 0)


_WHY: tuple[EndReason, ...] = ("lost", "loop", "restart", "size", "crop", "lost: outage")
"""Why tracks ended, in the order of bytetrack.c."""
_TOLD = 5
"""Numbers that are told of a frame: `Told` in bytetrack.c."""


def _buried(ended: Matrix, why: EndReason) -> Iterator[EndedTrack]:
    for number, leader, age, unseen in ended.tolist():
        yield EndedTrack(int(number), why, int(leader), age, unseen)
