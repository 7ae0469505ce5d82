"""What was found in the frames of a batch, as arrays of all of them, from which those of a frame are cut when somebody
asks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from streamd.types.batches import ByFrame
from streamd.types.detections import BoxColumns, Found, Tracks
from streamd.types.pictures import Float32Array, Int32Array

_NONE: Mapping[str, int] = {}


class Block(BoxColumns, Protocol):
    """The boxes of a batch in one block of memory: of all of them the numbers of the tracks (int64), their ages and two
    velocities (float64), where there are tracks; then the corners and scores (float32) and the classes (int32)."""

    @property
    def address(self) -> int:
        """Of the block."""

    @property
    def room(self) -> int:
        """For how many boxes there is room in each column."""

    @property
    def tracked(self) -> bool:
        """Whether there are tracks."""

    def tracks(self, of: slice) -> Tracks | None:
        """The tracks of some boxes; None without tracking."""


class PartOfBlock:
    """The boxes of one frame, as in `Boxes`: arrays are made when somebody asks for them.

    Args:
        block: those of its batch.
        begin: the frame's first box.
        end: likewise.
    """

    __slots__ = ("begin", "block", "end")

    def __init__(self, block: Block, begin: int, end: int) -> None:
        self.block, self.begin, self.end = block, begin, end

    @property
    def xyxy(self) -> Float32Array:
        """See `Boxes`."""
        return self.block.xyxy[self.begin : self.end]

    @property
    def score(self) -> Float32Array:
        """See `Boxes`."""
        return self.block.score[self.begin : self.end]

    @property
    def class_id(self) -> Int32Array:
        """See `Boxes`."""
        return self.block.class_id[self.begin : self.end]

    @property
    def classes(self) -> list[int]:
        """See `Boxes`."""
        return self.block.classes[self.begin : self.end]

    @property
    def tracks(self) -> Tracks | None:
        """See `Boxes`."""
        return self.block.tracks(slice(self.begin, self.end))


class TrackedBoxes:
    """Boxes with their tracks, see `Block`; behind them, for each box that they were chosen from, whether it is one of
    them. Never modified.

    Args:
        memory: in which the block is.
        begin: its first number of 32 bits there.
        room: N, the number of boxes that they were chosen from.
        count: how many they are. What follows them in a column means nothing.
        address: of the block.
    """

    __slots__ = ("_begin", "_classes", "_count", "_memory", "address", "room")
    tracked = True

    def __init__(self, memory: Int32Array, begin: int, room: int, count: int, address: int) -> None:
        self._memory, self._begin, self.room, self._count, self.address = memory, begin, room, count, address
        self._classes: list[int] | None = None

    def _rows(self, first: int, end: int) -> Int32Array:
        """Columns of the block, in numbers of 32 bits a box."""
        return self._memory[self._begin + first * self.room : self._begin + end * self.room]

    @property
    def xyxy(self) -> Float32Array:
        """(N, 4) in upright source pixels."""
        return self._rows(8, 12).view(np.float32).reshape(self.room, 4)

    @property
    def score(self) -> Float32Array:
        """(N,)"""
        return self._rows(12, 13).view(np.float32)

    @property
    def class_id(self) -> Int32Array:
        """(N,)"""
        return self._rows(13, 14)

    @property
    def classes(self) -> list[int]:
        """(count,) The same. Every frame's are counted."""
        if self._classes is None:
            begin = self._begin + 13 * self.room
            self._classes = self._memory[begin : begin + self._count].tolist()
        return self._classes

    def tracks(self, of: slice) -> Tracks:
        """Of some boxes."""
        number, age_s, velocity = self._rows(0, 2), self._rows(2, 4), self._rows(4, 8)
        return Tracks(
            number.view(np.int64)[of], age_s.view(np.float64)[of],
            velocity.view(np.float64).reshape(self.room, 2)[of],
        )  # fmt: skip

    def kept(self) -> npt.NDArray[np.bool_]:
        """(N,) for each box that they were chosen from, whether it is one of them."""
        begin = self._begin + 14 * self.room
        return self._memory[begin : begin + (self.room + 3) // 4].view(np.bool_)[: self.room]


class FoundBatch(ByFrame[Found]):
    """The boxes of a batch's frames in one block of memory, one frame after the other: none was left out, and none has
    details. Never modified.

    Args:
        block: (6 N,) float32 without gaps: the corners of all boxes, their scores, and their classes as int32.
        bounds: the first box of each frame, and the end.
    """

    __slots__ = ("_classes", "address", "block", "bounds")
    tracked = False

    def __init__(self, block: Float32Array, bounds: Sequence[int]) -> None:
        self.block, self.bounds = block, bounds
        self.address: int = block.__array_interface__["data"][0]
        """Of the block."""
        self._classes: list[int] | None = None

    @classmethod
    def of(
        cls, xyxy: Sequence[npt.NDArray[Any]], score: Sequence[npt.NDArray[Any]], class_id: Sequence[npt.NDArray[Any]]
    ) -> FoundBatch:
        """From arrays of each frame: (N, 4), (N,) and (N,).

        Raises:
            ValueError: those of a frame do not go together.
        """
        for corners, scores, classes in zip(xyxy, score, class_id, strict=True):
            if corners.shape != (*scores.shape, 4) or classes.shape != scores.shape:
                raise ValueError(
                    f"{corners.shape} boxes, {scores.shape} scores and {classes.shape} classes do not go together"
                )
        bounds = [0, *accumulate([len(scores) for scores in score])]
        n = bounds[-1]
        block = np.empty(6 * n, np.float32)
        if n:
            np.concatenate(xyxy, out=block[: 4 * n].reshape(n, 4), casting="same_kind")
            np.concatenate(score, out=block[4 * n : 5 * n], casting="same_kind")
            np.concatenate(class_id, out=block[5 * n :].view(np.int32), casting="same_kind")
        return cls(block, bounds)

    @property
    def xyxy(self) -> Float32Array:
        """(N, 4) in upright source pixels."""
        n = self.bounds[-1]
        return self.block[: 4 * n].reshape(n, 4)

    @property
    def score(self) -> Float32Array:
        """(N,)"""
        n = self.bounds[-1]
        return self.block[4 * n : 5 * n]

    @property
    def class_id(self) -> Int32Array:
        """(N,)"""
        n = self.bounds[-1]
        return self.block[5 * n : 6 * n].view(np.int32)

    @property
    def room(self) -> int:
        """Number of boxes."""
        return self.bounds[-1]

    @property
    def classes(self) -> list[int]:
        """The same as `class_id`. Every frame's are counted."""
        if self._classes is None:
            self._classes = self.class_id.tolist()
        return self._classes

    def tracks(self, of: slice) -> None:
        """There are none yet."""

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.bounds) - 1

    def _frame(self, i: int) -> Found:
        of = slice(self.bounds[i], self.bounds[i + 1])
        return Found(self.xyxy[of], self.score[of], self.class_id[of], _NONE)

    def __iter__(self) -> Iterator[Found]:
        """Frame by frame."""
        xyxy, score, class_id, begin = self.xyxy, self.score, self.class_id, 0
        for end in self.bounds[1:]:
            yield Found(xyxy[begin:end], score[begin:end], class_id[begin:end], _NONE)
            begin = end
