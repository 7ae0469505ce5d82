"""NMS on the device: kernels.cu's `Suppress`, filled from a head's plan, and its result, a few kilobytes per frame."""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

from streamd.engine.tensorrt.decode import CANDIDATE
from streamd.types import Candidates, DecodePlan

BEST = 4096
"""Number of candidates considered, best first: as in kernels.cu and heads/nms.py."""
BLOCK = (512, 1, 1)
"""Threads per block: one block per frame."""
BOX_BYTES = 24
"""Four floats of corners, the score, the class number."""
_ALIGN = 256
_SUPPRESS = struct.Struct("<6Q6id")
SUPPRESS_BYTES = _SUPPRESS.size


class Layout:
    """Layout of the two blocks of memory that suppression needs.

    The result block, or its beginning, is copied back: counts of candidates, counts of boxes, and boxes for each frame.
    The scratch block stays on the device: candidates, and memory for sorting them.

    Args:
        frames: size of the largest batch.
        capacity: candidates per frame.
        max_det: most boxes per frame.
    """

    def __init__(self, frames: int, capacity: int, max_det: int) -> None:
        self.frames = frames
        self.capacity = capacity
        self.best = min(capacity, BEST)
        self.max_kept = min(max_det, self.best)
        # A sort that exceeds a block's shared memory uses the scratch block, over the next power of two.
        self.keys = 0 if capacity <= BEST else 1 << (capacity - 1).bit_length()
        self.kept_at = -(-frames * 4 // _ALIGN) * _ALIGN
        self.boxes_at = 2 * self.kept_at
        self.ranked_at = frames * capacity * CANDIDATE.itemsize
        self.keys_at = self.ranked_at + frames * self.best * BOX_BYTES
        self.scratch_bytes = self.keys_at + frames * self.keys * 8

    def result_bytes(self, frames: int) -> int:
        """Size of the result block for a batch of this many frames."""
        return self.boxes_at + frames * self.max_kept * BOX_BYTES

    def pack(self, plan: DecodePlan, result: int, scratch: int) -> bytes:
        """The `Suppress` structure.

        Args:
            plan: iou and agnostic.
            result: address of the result block, which starts with the counts of candidates.
            scratch: address of the scratch block, a multiple of 8, which starts with the candidates.
        """
        return _SUPPRESS.pack(
            result, scratch, result + self.kept_at, result + self.boxes_at, scratch + self.ranked_at,
            scratch + self.keys_at, self.capacity, self.best, self.keys, self.max_kept, plan.agnostic, 0, plan.iou,
        )  # fmt: skip


class Boxes:
    """The result block as seen from the host.

    Args:
        block: the bytes that the device copies to.
        layout: layout of the block.
    """

    def __init__(self, block: npt.NDArray[np.uint8], layout: Layout) -> None:
        most, frames = layout.max_kept, layout.frames
        self._kept = block[layout.kept_at : layout.kept_at + frames * 4].view(np.uint32)
        boxes = block[layout.boxes_at : layout.result_bytes(frames)].reshape(frames, most * BOX_BYTES)
        floats = boxes.view(np.float32)
        self._xyxy = floats[:, : 4 * most].reshape(frames, most, 4)
        self._score = floats[:, 4 * most : 5 * most]
        self._class_id = boxes.view(np.int32)[:, 5 * most :]

    def candidates(self, frames: int) -> list[Candidates]:
        """The kept boxes of each frame, best first: views of the block."""
        return [
            Candidates(self._xyxy[i, :n], self._score[i, :n], self._class_id[i, :n], True)
            for i, n in enumerate(self._kept[:frames].tolist())
        ]
