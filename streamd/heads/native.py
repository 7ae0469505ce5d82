"""What a device found in all frames of a batch, mapped to source pixels by compiled code, where it was compiled."""

from __future__ import annotations

import ctypes
import functools
import itertools
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from streamd.analysis.compiled import either_way, joined_bytes
from streamd.types import Candidates, Found, FoundBatch, Letterbox

_POINTER, _COUNT = ctypes.c_void_p, ctypes.c_int64
SHORT = 2000
"""Up to this number of boxes a call takes less than 20 µs, and keeps the interpreter lock."""
_TYPES = (np.dtype(np.float32), np.dtype(np.float32), np.dtype(np.int32))


@functools.cache
def library(path: str | None = None) -> tuple[Any, Any] | None:
    """The compiled mapping: with the interpreter lock, and without; None where there is none.

    Args:
        path: of the file; the one that was built with the package by default.
    """
    arguments = (_COUNT, _COUNT, *[_POINTER] * 5)
    return either_way(Path(__file__).with_name("_boxes"), "boxes_to_source", arguments, path)


def to_source(
    functions: tuple[Any, Any], given: Sequence[Candidates], letterboxes: Sequence[Letterbox]
) -> Sequence[Found | None]:
    """The boxes of a batch, with scores of at most 1.

    Args:
        functions: see `library`.
        given: of each frame, suppressed.
        letterboxes: of each frame.

    Returns:
        Of each frame what is in it; None if a box is to be left out, or may have to be. A `FoundBatch` where there is
        no such frame.
    """
    counts = [len(found.score) for found in given]
    bounds = [0, *itertools.accumulate(counts)]
    n, frames = bounds[-1], len(counts)
    boxes = joined_bytes(
        [*[f.xyxy for f in given], *[f.score for f in given], *[f.class_id for f in given]], 24 * n, _TYPES
    )
    batch = FoundBatch(np.empty(6 * n + (frames + 3) // 4, np.float32), bounds)
    mappings = b"".join([letterbox.packed for letterbox in letterboxes])
    numbers = array("q", counts).tobytes()
    out = batch.address
    if not functions[n > SHORT](n, frames, numbers, mappings, boxes, out, out + 24 * n):
        return batch
    left = batch.block[6 * n :].view(np.bool_)[:frames].tolist()
    return [None if out else found for found, out in zip(batch, left, strict=True)]
