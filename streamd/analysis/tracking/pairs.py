"""Which tracks and boxes may belong together, and which do.

Most tracks are near one box only. The dense work (every track of a stream with every box of its frame) is therefore
only the test whether two rectangles intersect; similarity is computed for the few pairs that do. Pairs are matched
greedily, best first: on the sequences that the trackers were measured with, an optimal assignment is no better
(docs/tracking.md), and the greedy one does not depend on what happens elsewhere in the picture."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from streamd.analysis.tracking.tracks import BOX, CENTER, HALF, SIZE, ZERO, Matrix
from streamd.types import Float32Array

Indices = npt.NDArray[np.intp]

_PAIR_NS = 6.0
_CALL_NS = 12_000.0
"""Cost of a padded element of the dense test, and of the calls for one stream. They only decide which method is
used."""
FEW = 200
"""With at most this many pairs in a stream, all are considered."""
_MANY = 64
"""From this number of pairs, those without competitors are matched at once."""
_NOWHERE = np.float32(1e30)


class Rectangles(NamedTuple):
    """Corners of rectangles, those of several streams one after the other."""

    low: Float32Array
    """(2, N) left and top."""
    high: Float32Array
    """(2, N) right and bottom."""
    counts: tuple[int, ...]
    """Number of rectangles of each stream."""

    @classmethod
    def around(cls, place: Matrix, counts: tuple[int, ...], grown: Matrix | None = None) -> Rectangles:
        """Boxes (≥4, N) of centre and size, each `grown` (N,) pixels to every side."""
        half = place[SIZE] * HALF
        if grown is not None:
            half += grown
        corners = np.empty((2, *half.shape), np.float32)
        np.subtract(place[CENTER], half, out=corners[0], casting="same_kind")
        np.add(place[CENTER], half, out=corners[1], casting="same_kind")
        return cls(corners[0], corners[1], counts)


@lru_cache(maxsize=512)
def every(rows: int, columns: int) -> tuple[Indices, Indices]:
    """All pairs of the given numbers of tracks and boxes; read-only. Selecting is not worth it for up to `FEW`."""
    pair = np.arange(rows * columns)
    return pair // columns, pair % columns


def meeting(tracks: Rectangles, boxes: Rectangles) -> tuple[Indices, Indices]:
    """All pairs (track, box) of the same stream that overlap, as indices into the joined arrays."""
    streams = len(tracks.counts)
    if streams == 1:
        found, hit = _overlap(
            tracks.low[:, :, None], tracks.high[:, :, None], boxes.low[:, None], boxes.high[:, None]
        ).nonzero()
        return found, hit
    rows, columns = max(tracks.counts), max(boxes.counts)
    apart = sum(n * m for n, m in zip(tracks.counts, boxes.counts, strict=True)) * _PAIR_NS + streams * _CALL_NS
    if streams * rows * columns * _PAIR_NS > apart:
        return _stream_by_stream(tracks, boxes)
    track_at, track_low, track_high = _padded(tracks, rows)
    box_at, box_low, box_high = _padded(boxes, columns)
    padded_rows, inner = np.nonzero(
        _overlap(
            track_low.reshape(2, streams, rows, 1),
            track_high.reshape(2, streams, rows, 1),
            box_low.reshape(2, streams, 1, columns),
            box_high.reshape(2, streams, 1, columns),
        ).reshape(streams * rows, columns)
    )
    return track_at[padded_rows], box_at[padded_rows // rows * columns + inner]


def _overlap(
    track_low: Float32Array, track_high: Float32Array, box_low: Float32Array, box_high: Float32Array
) -> npt.NDArray[np.bool_]:
    extent = np.minimum(track_high, box_high)
    extent -= np.maximum(track_low, box_low)
    meets: npt.NDArray[np.bool_] = np.minimum(extent[0], extent[1]) > 0
    return meets


def _padded(rectangles: Rectangles, width: int) -> tuple[Indices, Float32Array, Float32Array]:
    """The rectangles in one row of `width` per stream, padded with empty ones; and the index of the one at each
    place."""
    counts = np.array(rectangles.counts)
    total = rectangles.low.shape[1]
    ends = counts.cumsum()
    own = np.arange(total)
    places = own + np.repeat(np.arange(len(counts)) * width - (ends - counts), counts)
    at = np.zeros(len(counts) * width, np.intp)
    at[places] = own
    low = np.full((2, len(at)), _NOWHERE)
    high = np.full((2, len(at)), -_NOWHERE)
    low[:, places] = rectangles.low
    high[:, places] = rectangles.high
    return at, low, high


def _stream_by_stream(tracks: Rectangles, boxes: Rectangles) -> tuple[Indices, Indices]:
    """The same for streams of very different sizes, for which padding would be wasteful."""
    found, row, column = [], 0, 0
    for n, m in zip(tracks.counts, boxes.counts, strict=True):
        if n and m:
            t, b = slice(row, row + n), slice(column, column + m)
            i, j = np.nonzero(
                _overlap(tracks.low[:, t, None], tracks.high[:, t, None], boxes.low[:, None, b], boxes.high[:, None, b])
            )
            found.append((i + row, j + column))
        row, column = row + n, column + m
    if not found:
        return np.empty(0, np.intp), np.empty(0, np.intp)
    return np.concatenate([i for i, _ in found]), np.concatenate([j for _, j in found])


class Pairs:
    """Pairs that may be matched, and the similarity of their boxes.

    0 to 1: the intersection over union of the two boxes, both expanded on each side in proportion to their heights
    (`reach` for the track's), times the square root of the ratio of their heights. The expansion widens the gate after
    a gap (C-BIoU uses a fixed factor)."""

    __slots__ = ("_areas", "_ratio", "_smaller", "_sum", "columns", "offset", "rows")

    def __init__(self, rows: Indices, columns: Indices, tracks: Matrix, reach: Matrix | None, boxes: Matrix) -> None:
        """Takes (P,) `rows` of tracks (≥4, T) with (P,) `columns` of boxes (4, B); `reach` is (T,) pixels."""
        self.rows, self.columns = rows, columns
        track, box = tracks[BOX].take(rows, axis=1), boxes.take(columns, axis=1)
        self.offset: Matrix = box[CENTER] - track[CENTER]
        """(2, P) offset of each box from its track's prediction."""
        track_size, box_size = track[SIZE], box[SIZE]
        ratio = box_size[1] / track_size[1]
        lower = np.reciprocal(ratio)
        np.minimum(lower, ratio, out=lower)
        self._ratio = np.sqrt(lower, out=lower)
        if reach is not None:
            grown = (reach + reach)[rows]
            track_size += grown
            # In proportion to the height, so that a small box near a large one is not mistaken for it.
            grown *= ratio
            box_size += grown
        self._smaller = np.minimum(track_size, box_size)
        areas = track_size[0] * track_size[1]
        areas += box_size[0] * box_size[1]
        self._areas = areas
        track_size += box_size
        track_size *= HALF
        self._sum = track_size

    def alike(self) -> Matrix:
        """(P,) similarity for the current offsets."""
        # Two intervals of lengths a and b whose centres are d apart share min(a, b, (a + b) / 2 - d).
        shared = self._sum - np.abs(self.offset)
        np.minimum(shared, self._smaller, out=shared)
        np.maximum(shared, ZERO, out=shared)
        common: Matrix = shared[0] * shared[1]
        union = self._areas - common
        common /= union
        common *= self._ratio
        return common


def match(
    key: Matrix, able: npt.NDArray[np.bool_], rows: Indices, columns: Indices, n_rows: int, n_columns: int
) -> list[int]:
    """Matches pairs in descending order of the key, each row and each column once.

    Args:
        key: (P,) higher for better pairs; equal keys are taken in their order.
        able: (P,) which pairs may be matched at all.
        rows: (P,) the pairs' tracks.
        columns: (P,) the pairs' boxes.
        n_rows: how many tracks there are.
        n_columns: how many boxes there are.

    Returns:
        The matched pairs, in ascending order.
    """
    allowed = able.nonzero()[0]
    taken: list[int] = []
    if len(allowed) > _MANY:
        # Pairs that share neither track nor box with another one can be matched in any order.
        own_rows, own_columns = rows[allowed], columns[allowed]
        alone = np.bincount(own_rows, minlength=n_rows)[own_rows] == 1
        alone &= np.bincount(own_columns, minlength=n_columns)[own_columns] == 1
        taken = allowed[alone].tolist()
        allowed = allowed[~alone]
    order = allowed[(-key[allowed]).argsort(kind="stable")]
    free_row, free_column = bytearray(b"\1") * n_rows, bytearray(b"\1") * n_columns
    # A plain loop over a few hundred numbers costs less than rounds of whole-array operations.
    for pair, row, column in zip(order.tolist(), rows[order].tolist(), columns[order].tolist(), strict=True):
        if free_row[row] and free_column[column]:
            free_row[row] = free_column[column] = 0
            taken.append(pair)
    taken.sort()
    return taken
