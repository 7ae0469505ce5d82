"""What the network found in the frames of a batch, as arrays of all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from streamd.types.batches import ByFrame
from streamd.types.detections import Found
from streamd.types.pictures import Float32Array, Int32Array

_NONE: Mapping[str, int] = {}


class FoundBatch(ByFrame[Found]):
    """The boxes of a batch's frames in one block of memory, one frame after the other: none was left out, and none has
    details. Never modified.

    Args:
        block: (6 N,) float32 without gaps: the corners of all boxes, their scores, and their classes as int32.
        bounds: the first box of each frame, and the end.
    """

    __slots__ = ("address", "block", "bounds", "class_id", "score", "xyxy")

    def __init__(self, block: Float32Array, bounds: Sequence[int]) -> None:
        n = bounds[-1]
        self.block, self.bounds = block, bounds
        self.address: int = block.__array_interface__["data"][0]
        """Of the block."""
        self.xyxy: Float32Array = block[: 4 * n].reshape(n, 4)
        """(N, 4) in upright source pixels."""
        self.score: Float32Array = block[4 * n : 5 * n]
        """(N,)"""
        self.class_id: Int32Array = block[5 * n : 6 * n].view(np.int32)
        """(N,)"""

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
