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
    BoolArray,
    EndedTrack,
    EndReason,
    ObservationBatch,
    Tracked,
    TrackedBatch,
)
from streamd.analysis.tracking.tracks import COUNT, LIBRARY, ROOM, Matrix, StreamTracks
from streamd.types import Box, FoundBatch, TrackedBoxes

if TYPE_CHECKING:
    from streamd.analysis.tracking.batch import Life
    from streamd.analysis.tracking.motion import Motion

_POINTER, _COUNT = ctypes.c_void_p, ctypes.c_int64


SHORT_NS = 250_000.0
"""A call that is expected to take longer lets go of the interpreter lock. To get it back costs more than a step of
45 µs: beside 16 decoding threads, batches had a median of 0.5 to 8.4 ms where it was let go, 0.3 to 0.5 where it was
kept, and a process with 33 boxes a frame had 0.45 to 0.78 of the rate without tracking where every step let go of it,
0.79 to 0.89 where none did (`tools/bench_tracking.py --decoders 16 --short-us`)."""
_FRAME_NS, _BOX_NS, _PAIR_NS = 300.0, 45.0, 1.2
"""What a frame, a box or track, and a pair of both take, measured on traffic: 20 boxes and 22 tracks a frame."""
_PER_FRAME = 8
"""Numbers of a frame: `Frame` in frames.c."""
_SOME, _GONE, _CHOSEN, _TRACKS, _PAIRS, _TOLD, _ENDED, _TIMES = range(8)
"""Places in a step's memory: `Work` in frames.c."""
_PER_TOLD = 3
"""Numbers that are told of a frame: `Told` in frames.c."""
_BLOCKS = 8192
"""Numbers of the memory that blocks are taken from: those of a few batches. What is kept of one keeps all of it."""
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
    arguments = (_POINTER, _POINTER, _COUNT, _POINTER, _POINTER, _COUNT, _COUNT, *[_POINTER] * 4)
    steps = either_way(LIBRARY, "bytetrack_batch", arguments, path)
    others = compiled(LIBRARY, ("bytetrack_free", "bytetrack_work_size"), path, hold=True)
    if steps is None or others is None:
        return None
    free, size = others
    free.argtypes, free.restype, size.restype = [_POINTER], None, ctypes.c_int64
    return Library(*steps, free, size())


@functools.lru_cache(maxsize=256)
def _packed(frames: int) -> Callable[..., bytes]:
    return struct.Struct(f"{_PER_FRAME * frames}q").pack


Left = Callable[[int, int, int], Tracked]
"""Steps a frame in another way: its number and, with the clocks of streams, its time for tracks and how many frames
were missed before it."""


class Published(NamedTuple):
    """What a step says of a batch whose boxes it has chosen."""

    tracked: TrackedBatch
    """Of all boxes; valid until the next step."""
    boxes: TrackedBoxes | None = None
    """The boxes to publish; None where they are still to be chosen."""
    ends: Sequence[int] = ()
    """By frame, how many of them there are up to its end."""
    block: Matrix | None = None

    def kept(self) -> BoolArray:
        """By given box, whether it is to be published."""
        assert self.block is not None
        n, frames = len(self.tracked.joined.id), len(self.ends)
        return self.block[7 * n + frames :].view(np.bool_)[:n]


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
        self._columns = np.empty(0)
        self._columns_at = 0
        self._blocks = np.empty(0)
        """Memory for blocks, taken from its begin. NumPy takes longer to say where memory is than to allocate it."""
        self._blocks_at = 0
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
        states = [frame[0] for frame in batch.frames]
        return self._run(facts, states, batch.boxes, columns, address_of(columns), left, clocked=False)

    def publish(
        self, facts: list[int], states: Sequence[StreamTracks], found: FoundBatch, choice: int, left: Left, *,
        ended: bool = True,
    ) -> Published:  # fmt: skip
        """Frames in the order of their capture, by the clocks of their streams, and which of their boxes are published.

        Args:
            facts: of each frame, one after the other: the address of its stream, when it arrived, its number, 1 where
                its stream begins again, width, height, time stamp or `NO_PTS`, and its `part`.
            states: its stream.
            found: the boxes.
            choice: address of a selection's; see `Selection.address`.
            left: see `__call__`.
            ended: whether anybody asks which tracks have ended.

        Raises:
            struct.error: a number of 64 bits and more. Nothing has changed.
            MemoryError: likewise.
            IndexError: a class without a floor.
        """
        n, frames = found.bounds[-1], len(found)
        if len(self._columns) < 5 * n + 1:
            self._columns = np.empty(10 * n + 1)
            self._columns_at = address_of(self._columns)
        block, out = self._block(7 * n + frames + (n + 7) // 8)
        tracked = self._run(
            facts, states, found, self._columns, self._columns_at, left, clocked=True, choice=choice, out=out,
            ended=ended,
        )  # fmt: skip
        count = self._work[_CHOSEN]
        if not tracked.address:
            return Published(tracked)
        if count < 0:
            raise IndexError("a box has a class without a label")
        ends = block[7 * n : 7 * n + frames].view(np.int64).tolist()
        return Published(tracked, TrackedBoxes(block, n, out), ends, block)

    def _block(self, size: int) -> tuple[Matrix, int]:
        """Memory for `size` doubles, and its address."""
        if len(self._blocks) < size:
            self._blocks = np.empty(max(size, _BLOCKS))
            self._blocks_at = address_of(self._blocks)
        block, address = self._blocks[:size], self._blocks_at
        self._blocks, self._blocks_at = self._blocks[size:], address + 8 * size
        return block, address

    def times(self, frames: int) -> list[int]:
        """The times of the frames of the last `publish`, by the clocks of their streams."""
        return (ctypes.c_int64 * (3 * frames)).from_address(self._work[_TIMES])[::3]

    def _run(
        self, facts: list[int], states: Sequence[StreamTracks], found: FoundBatch, columns: Matrix, address: int,
        left: Left, *, clocked: bool, choice: int = 0, out: int = 0, ended: bool = True,
    ) -> TrackedBatch:  # fmt: skip
        bounds, frames = found.bounds, len(states)
        n, work = bounds[-1], self._work
        step = self._quick if _FRAME_NS * frames + n * self._box_ns < SHORT_NS else self._long
        packed, ends = _packed(frames)(*facts), array("q", bounds).tobytes()
        at, tracks, pairs, others = 0, 0, 0, dict[int, Tracked]()
        buried: dict[int, tuple[EndedTrack, ...]] = {}
        while True:
            at = step(
                self._address, self._work_at, frames, packed, ends, at, clocked, found.address, address, choice, out
            )
            if at < 0:
                raise MemoryError
            tracks, pairs = tracks + work[_TRACKS], pairs + work[_PAIRS]
            if ended and work[_SOME]:
                self._told(buried)
            if at == frames:
                break
            room, needed = states[at].facts[ROOM], states[at].facts[COUNT] + bounds[at + 1] - bounds[at]
            if needed > room:
                states[at].reserve(needed)
                continue
            time_ns = missed = 0
            if clocked:
                _, time_ns, missed = (ctypes.c_int64 * 3).from_address(work[_TIMES] + 24 * at)
            others[at] = left(at, time_ns, missed)
            at += 1
        self._box_ns = (_BOX_NS * (n + tracks) + _PAIR_NS * pairs) / max(n, 1)
        if len(self._parts) > _PARTS:
            self._parts.clear()
        batch = TrackedBatch(columns, bounds, buried, address=address)
        return TrackedBatch.of([others.get(i) or batch[i] for i in range(frames)]) if others else batch

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


def _free(free: Any, work: array[int]) -> None:
    free(work.buffer_info()[0])


_WHY: tuple[EndReason, ...] = ("lost", "loop", "restart", "size", "crop", "lost: outage")
"""Why tracks ended, in the order of bytetrack.h."""
