"""ByteTrack's step as compiled code, where it was compiled: `frames.c`. One call for all frames of a batch.

A batch of common scenes keeps the interpreter lock for a few dozen microseconds; one of large crowds lets go of it.

Installing streamd builds it if there is a C compiler. Without it the NumPy implementation runs, with the same results.
"""

from __future__ import annotations

import ctypes
import functools
import struct
import weakref
from array import array
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from streamd.analysis.compiled import address_of, compiled, either_way
from streamd.analysis.tracking.observation import (
    EndedTrack,
    EndReason,
    ObservationBatch,
    Tracked,
    TrackedBatch,
)
from streamd.analysis.tracking.tracks import COUNT, LIBRARY, ROOM, Matrix, StreamTracks
from streamd.types import Box, FoundBatch, Int32Array, TrackedBoxes

if TYPE_CHECKING:
    from streamd.analysis.tracking.batch import Life
    from streamd.analysis.tracking.motion import Motion

_POINTER = ctypes.c_void_p


SHORT_NS = 250_000.0
"""A call that is expected to take longer lets go of the interpreter lock. To get it back costs more than a step of
45 µs: beside 16 decoding threads, batches had a median of 0.5 to 8.4 ms where it was let go, 0.3 to 0.5 where it was
kept, and a process with 33 boxes a frame had 0.45 to 0.78 of the rate without tracking where every step let go of it,
0.79 to 0.89 where none did (`tools/bench_tracking.py --decoders 16 --short-us`)."""
_FRAME_NS, _BOX_NS, _PAIR_NS = 300.0, 45.0, 1.2
"""What a frame, a box or track, and a pair of both take, measured on traffic: 20 boxes and 22 tracks a frame."""
_PER_FRAME = 8
"""Numbers of a frame: `Frame` in frames.c."""
_HEADER, _FIRST = 9, 3
"""Numbers before the frames in `Call` in frames.c; the place of `first`."""
_SOME, _GONE, _CHOSEN, _TRACKS, _PAIRS, _TOLD, _ENDED, _TIMES = range(8)
"""Places in a step's memory: `Work` in frames.c."""
_PER_TOLD = 3
"""Numbers that are told of a frame: `Told` in frames.c."""
_BLOCKS = 8192
"""Numbers of 64 bits of the memory that blocks are taken from: those of a few batches. What is kept of one keeps
all of it."""
_PARTS = 1000
"""Of so many different parts of pictures the numbers are kept."""


class Library(NamedTuple):
    """The functions that were compiled."""

    quick: Any
    """The step with the interpreter lock."""
    long: Any
    """The step without it."""
    free: Any
    size: int
    """Bytes of a step's memory."""


@functools.cache
def library(path: str | None = None) -> Library | None:
    """What was compiled; None where nothing was.

    Args:
        path: of the file; the one that was built with the package by default.
    """
    steps = either_way(LIBRARY, "bytetrack_frames", (_POINTER,), path)
    others = compiled(LIBRARY, ("bytetrack_free", "bytetrack_work_size"), path, hold=True)
    if steps is None or others is None:
        return None
    free, size = others
    free.argtypes, free.restype, size.restype = [_POINTER], None, ctypes.c_int64
    return Library(*steps, free, size())


@functools.lru_cache(maxsize=256)
def _packed(frames: int) -> Callable[..., None]:
    return struct.Struct(f"{_HEADER + (_PER_FRAME + 1) * frames + 1}q").pack_into


Left = Callable[[int, int, int], Tracked]
"""Steps a frame in another way: its number and, with the clocks of streams, its time for tracks and how many frames
were missed before it."""


class Published(NamedTuple):
    """What a step says of a batch whose boxes it was to choose."""

    tracked: TrackedBatch | None
    """Of all boxes; valid until the next step. None where nobody needs it."""
    boxes: TrackedBoxes | None
    """The boxes to publish; None where they are still to be chosen."""
    ends: Sequence[int]
    """By frame, how many of them there are up to its end."""


class NativeStep:
    """Steps frames of many streams together. For one thread.

    Args:
        compiled: see `library`.
        gates: low, high, gate, weak_gate and new_gate of the settings, and whether the camera's motion is compensated.
        life: how long tracks live.
        motion: the filter's constants.
    """

    def __init__(
        self, compiled: Library, gates: tuple[float, float, float, float, float, bool], life: Life, motion: Motion
    ) -> None:
        low, high, gate, weak_gate, new_gate, camera = gates
        m = motion
        self._quick, self._long = compiled.quick, compiled.long
        values = (
            low, high, life.certain, gate, weak_gate, new_gate, life.lost_s, life.wall_s, life.outage_s, life.most,
            camera, m.center_noise, m.size_noise, m.box_noise, m.first_speed, m.tau,
        )  # fmt: skip
        self._settings = np.array(values, np.float64)
        self._address = address_of(self._settings)
        self._work = array("q", bytes(compiled.size))
        self._work_at: int = self._work.buffer_info()[0]
        weakref.finalize(self, _free, compiled.free, self._work).atexit = False
        self._call, self._call_at = array("q"), 0
        self._columns, self._columns_at = np.empty(0), 0
        self._columns_room = 0
        """For how many boxes."""
        self._blocks: Int32Array = np.empty(0, np.int32)
        """Memory for blocks. NumPy takes longer to say where memory is, and to cut it, than to allocate it."""
        self._blocks_at = self._used = 0
        self._box_ns = 3 * _BOX_NS
        """What a box took in the last step, with its part of tracks and pairs."""
        self._parts: dict[Box, array[int]] = {}

    def part(self, roi: Box | None) -> int:
        """The address of the numbers of a part of a picture; 0 for all of it."""
        if roi is None:
            return 0
        numbers = self._parts.get(roi)
        if numbers is None:
            numbers = self._parts[roi] = array("q", roi)
        return numbers.buffer_info()[0]

    def __call__(self, batch: ObservationBatch, left: Left) -> TrackedBatch:
        """One frame of each of several streams, whose state is replaced.

        Args:
            batch: the frames.
            left: steps those with too many tracks.

        Returns:
            What is known of the boxes.

        Raises:
            MemoryError: nothing has changed.
        """
        facts: list[int] = []
        bounds = batch.boxes.bounds
        for state, time_ns, missed, begin, width, height, roi in batch.frames:
            why = 0 if begin is None else _WHY.index(begin)
            facts += (state.address, time_ns, missed, why, width, height, 0, self.part(roi))
        columns = np.empty(5 * bounds[-1] + 1)
        address = address_of(columns)
        buried, others = self._run(facts, lambda i: batch.frames[i][0], batch.boxes, address, left)
        return _tracked(columns, bounds, buried, others, address)

    def publish(
        self, facts: list[int], tracks: Callable[[int], StreamTracks], found: FoundBatch, choice: int, left: Left, *,
        ended: bool = True,
    ) -> Published:  # fmt: skip
        """Frames in the order of their capture, by the clocks of their streams, and which of their boxes are published.

        Args:
            facts: of each frame, one after the other: the address of its stream, when it arrived, its number, 1 where
                its stream begins again, width, height, time stamp or `NO_PTS`, and its `part`.
            tracks: the stream of a frame, by its number.
            found: the boxes.
            choice: address of a selection's; see `Selection.address`.
            left: see `__call__`.
            ended: whether anybody asks which tracks have ended, and what is known of boxes that are not published.

        Raises:
            struct.error: a number of 64 bits and more. Nothing has changed.
            MemoryError: likewise.
            IndexError: a class without a floor.
        """
        bounds = found.bounds
        n = bounds[-1]
        if self._columns_room < n:
            self._columns, self._columns_room = np.empty(10 * n + 1), 2 * n
            self._columns_at = address_of(self._columns)
        # In numbers of 32 bits.
        size, begin = 14 * n + 2 * ((n + 7) // 8), self._used
        if begin + size > len(self._blocks):
            self._blocks, begin = np.empty(max(size, _BLOCKS), np.float64).view(np.int32), 0
            self._blocks_at = address_of(self._blocks)
        self._used = begin + size
        out = self._blocks_at + 4 * begin
        buried, others = self._run(facts, tracks, found, self._columns_at, left, choice, out, ended=ended)
        tracked = _tracked(self._columns, bounds, buried, others, self._columns_at) if ended or others else None
        if others:
            return Published(tracked, None, ())
        count = self._work[_CHOSEN]
        if count < 0:
            raise IndexError("a box has a class without a label")
        frames = len(bounds) - 1
        end = _HEADER + (_PER_FRAME + 2) * frames + 1
        boxes = TrackedBoxes(self._blocks, begin, n, count, out)
        return Published(tracked, boxes, self._call[end - frames : end])

    def times(self, frames: int) -> list[int]:
        """The times of the frames of the last `publish`, by the clocks of their streams."""
        return (ctypes.c_int64 * (3 * frames)).from_address(self._work[_TIMES])[::3]

    def _run(
        self, facts: list[int], tracks: Callable[[int], StreamTracks], found: FoundBatch, columns: int, left: Left,
        choice: int = 0, out: int = 0, *, ended: bool = True,
    ) -> tuple[dict[int, tuple[EndedTrack, ...]], dict[int, Tracked]]:  # fmt: skip
        """The tracks that ended, and what became of frames that were left, by frame; by the clocks of streams where
        there is a choice."""
        bounds, work = found.bounds, self._work
        n, frames = bounds[-1], len(bounds) - 1
        step = self._quick if _FRAME_NS * frames + n * self._box_ns < SHORT_NS else self._long
        if len(self._call) < _HEADER + (_PER_FRAME + 2) * frames + 1:
            self._call = array("q", bytes(8 * (_HEADER + (_PER_FRAME + 2) * frames + 1)))
            self._call_at = self._call.buffer_info()[0]
        _packed(frames)(
            self._call, 0, self._address, self._work_at, frames, 0, choice != 0, found.address, columns, choice, out,
            *facts, *bounds,
        )  # fmt: skip
        seen, pairs = n, 0
        buried: dict[int, tuple[EndedTrack, ...]] = {}
        others: dict[int, Tracked] = {}
        while True:
            at = step(self._call_at)
            if at < 0:
                raise MemoryError
            seen, pairs = seen + work[_TRACKS], pairs + work[_PAIRS]
            if ended and work[_SOME]:
                self._told(buried)
            if at == frames:
                break
            state = tracks(at)
            room, needed = state.facts[ROOM], state.facts[COUNT] + bounds[at + 1] - bounds[at]
            if needed > room:
                state.reserve(needed)
            else:
                time_ns = missed = 0
                if choice:
                    _, time_ns, missed = (ctypes.c_int64 * 3).from_address(work[_TIMES] + 24 * at)
                others[at] = left(at, time_ns, missed)
                at += 1
            self._call[_FIRST] = at
        self._box_ns = (_BOX_NS * seen + _PAIR_NS * pairs) / (n or 1)
        if len(self._parts) > _PARTS:
            self._parts.clear()
        return buried, others

    def _told(self, buried: dict[int, tuple[EndedTrack, ...]]) -> None:
        """Adds the tracks that ended, by frame."""
        work, at = self._work, 0
        ended = (ctypes.c_double * (4 * work[_GONE])).from_address(work[_ENDED])
        told = (ctypes.c_int64 * (_PER_TOLD * work[_SOME])).from_address(work[_TOLD])[:]
        for frame, gone, why in zip(told[::3], told[1::3], told[2::3], strict=True):
            buried[frame] = tuple(
                EndedTrack(int(ended[i]), _WHY[why], int(ended[i + 1]), ended[i + 2], ended[i + 3])
                for i in range(4 * at, 4 * (at + gone), 4)
            )
            at += gone


def _tracked(
    columns: Matrix, bounds: Sequence[int], buried: dict[int, tuple[EndedTrack, ...]], others: dict[int, Tracked],
    address: int,
) -> TrackedBatch:  # fmt: skip
    batch = TrackedBatch(columns, bounds, buried, address=address)
    return TrackedBatch.of([others.get(i) or batch[i] for i in range(len(batch))]) if others else batch


def _free(free: Any, work: array[int]) -> None:
    free(work.buffer_info()[0])


_WHY: tuple[EndReason, ...] = ("lost", "loop", "restart", "size", "crop", "lost: outage")
"""Why tracks ended, in the order of bytetrack.h."""
