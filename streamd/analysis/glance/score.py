"""How much the cells of a small picture stray, and where; `score.c` does the same, if compiled."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from streamd.analysis.glance import COLUMNS, ROWS, Luma
from streamd.analysis.glance.cells import TILE, Cells, Levels, around, crowd, near, tiles

MOST_RATIO = 3.0
"""What one cell may contribute: a spark in a single cell is no motion."""
RECENT_S = 5.0
"""Where a box was found so shortly ago, the network may only have missed it since."""
CLUTTER_TILES, CLUTTER_AGAIN, CLUTTER_S = 8, 4, 5.0
"""Where something strays in so many tiles, it is as likely to be rain, and in half as many if there was rain so shortly
ago: tiles in which no box was found lately, or"""
SPARK = 6
"""in which no more cells than this stray."""
SOLID = 8
"""So many straying cells of 3 × 3 are motion even then, and so is"""
LASTS = 3
"""what was there in so many pictures before and changes, if its score is so many times that of the fourth tile."""
USUAL, STANDS_OUT = 4, 1.5
NEAR = 2
"""What moves goes on from what moved in a picture before if it is at most so many rows and columns away."""


def score(
    distance: Levels, limit: Levels, stray: Cells, before: Iterable[Cells], stand_ns: npt.NDArray[np.int64],
    boxed_ns: npt.NDArray[np.int64], now_ns: int, passed_ns: int, threshold: float, cluttered_ns: int,
) -> tuple[float, int, int]:  # fmt: skip
    """Of the 3 × 3 cells that stray most; where sparks are all over the picture, of those that last and are unlike the
    others.

    Args:
        distance: (ROWS, COLUMNS) of each cell from the background.
        limit: (ROWS, COLUMNS) beyond which it strays.
        stray: (ROWS, COLUMNS) cells that do, at least one.
        before: those of the last `LASTS` pictures.
        stand_ns: (ROWS * COLUMNS,) when each straying cell last changed.
        boxed_ns: (ROWS, COLUMNS) when a box was last found in each.
        now_ns: time of the picture.
        passed_ns: since the picture before.
        threshold: the score at which something moves.
        cluttered_ns: when sparks last were all over the picture.

    Returns:
        The score, the cell in the middle, counted row by row, and `cluttered_ns`.
    """
    rows = np.flatnonzero(stray.any(axis=1))
    top, bottom = int(rows[0]) // TILE * TILE, (int(rows[-1]) // TILE + 1) * TILE
    ratio = distance[top:bottom] / limit[top:bottom]
    np.minimum(ratio, np.float32(MOST_RATIO), out=ratio)
    ratio *= stray[top:bottom]
    sums = around(ratio)
    best = int(sums.argmax())
    most, place = float(sums.flat[best]), top * COLUMNS + best
    if most < threshold / 2 or crowd(stray, place) >= SOLID:
        return most, place, cluttered_ns
    unboxed = sums * (now_ns - boxed_ns[top:bottom] > RECENT_S * 1e9)
    cells = tiles(stray[top:bottom].view(np.uint8)).sum(axis=(1, 3))
    peaks = np.where(cells <= SPARK, tiles(sums).max(axis=(1, 3)), tiles(unboxed).max(axis=(1, 3)))
    many = np.count_nonzero(peaks >= threshold / 2)
    rained = now_ns - cluttered_ns < CLUTTER_S * 1e9
    if many < (CLUTTER_AGAIN if rained else CLUTTER_TILES) or around(stray[top:bottom]).max() >= SOLID:
        return most, place, cluttered_ns
    if many >= CLUTTER_TILES:
        cluttered_ns = now_ns
    usual = float(np.partition(peaks, -USUAL, axis=None)[-USUAL])
    for each in before:
        ratio *= around(each[top:bottom]) > 0
    # What a codec has not yet repaired does not change.
    ratio *= stand_ns.reshape(ROWS, COLUMNS)[top:bottom] > now_ns - (LASTS - 0.5) * passed_ns
    sums = around(ratio)
    best = int(sums.argmax())
    lasting, place = float(sums.flat[best]), top * COLUMNS + best
    return (lasting if lasting >= max(threshold, STANDS_OUT * usual) else 0.0), place, cluttered_ns


def changed(limit: Levels, luma: Luma, cells: Cells, seen: Luma, seen_cells: Cells) -> float:
    """How much a picture differs from an earlier one, where something strays in either: the highest sum of 3 × 3 cells
    that differ by more than their limit.

    Args:
        limit: (ROWS, COLUMNS) beyond which a cell differs.
        luma: (ROWS, COLUMNS) the picture.
        cells: (ROWS, COLUMNS) what strays in it.
        seen: the earlier one.
        seen_cells: what strayed in that.

    Returns:
        The sum, comparable to a `score`.
    """
    distance = np.abs(luma.astype(np.float32) - seen.astype(np.float32))
    ratio = np.minimum(distance / limit, np.float32(MOST_RATIO))
    ratio *= (cells | seen_cells) & (distance > limit)
    return float(around(ratio).max())


def elsewhere(distance: Levels, limit: Levels, cells: Cells, seen_cells: Cells | None, boxes: Cells | None) -> float:
    """The highest sum of 3 × 3 cells that stray outside of boxes and away from what strayed before.

    Args:
        distance: (ROWS, COLUMNS) of each cell from the background.
        limit: (ROWS, COLUMNS) beyond which it strays.
        cells: (ROWS, COLUMNS) those that do.
        seen_cells: those that did in an earlier picture; None: wherever that was.
        boxes: (ROWS, COLUMNS) cells in boxes; None if there are none.

    Returns:
        The sum, comparable to a `score`.
    """
    ratio = np.minimum(distance / limit, np.float32(MOST_RATIO))
    if seen_cells is not None:
        cells = cells & ~near(seen_cells, NEAR)
    if boxes is not None:
        cells = cells & ~boxes
    ratio *= cells
    return float(around(ratio).max())
