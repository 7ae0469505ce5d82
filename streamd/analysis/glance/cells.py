"""Operations on the cells of a small picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from streamd.analysis.glance import COLUMNS

Cells = npt.NDArray[np.bool_]
Levels = npt.NDArray[np.float32]

FINER = np.float32(0.15)
"""See `beyond`."""
TILE = 10
"""Rows and columns of a tile."""


def around(cells: Levels | Cells) -> Levels:
    """The sum of each cell and its eight neighbours."""
    part = np.zeros((len(cells) + 2, COLUMNS + 2), np.float32)
    part[1:-1, 1:-1] = cells
    lines = part[:, :-2] + part[:, 1:-1]
    lines += part[:, 2:]
    out: Levels = lines[:-2] + lines[1:-1]
    out += lines[2:]
    return out


def tiles(cells: Any) -> Any:
    """(rows / TILE, TILE, COLUMNS / TILE, TILE) the same cells by tile."""
    return cells.reshape(-1, TILE, COLUMNS // TILE, TILE)


def crowd(cells: Cells, place: int) -> int:
    """How many of the 3 × 3 cells around one are set."""
    y, x = divmod(place, COLUMNS)
    return int(np.count_nonzero(cells[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]))


def near(cells: Cells, distance: int) -> Cells:
    """Those and all that are at most `distance` rows and columns away."""
    out: Cells = cells.copy()
    for _ in range(distance):
        across = out.copy()
        across[:, 1:] |= out[:, :-1]
        across[:, :-1] |= out[:, 1:]
        out = across.copy()
        out[1:] |= across[:-1]
        out[:-1] |= across[1:]
    return out


def reach(cells: Levels) -> tuple[Levels, Levels]:
    """The least and the most of each cell and its neighbours: at an edge, a shift by part of a cell explains any level
    between them."""
    return _neighbours(cells, np.minimum), _neighbours(cells, np.maximum)


def _neighbours(cells: Levels, choose: Any) -> Levels:
    across = cells.copy()
    choose(across[:, 1:], cells[:, :-1], out=across[:, 1:])
    choose(across[:, :-1], cells[:, 1:], out=across[:, :-1])
    out: Levels = across.copy()
    choose(out[1:], across[:-1], out=out[1:])
    choose(out[:-1], across[1:], out=out[:-1])
    return out


def beyond(level: Levels, low: Levels, high: Levels) -> Levels:
    """How far each level is from what lies between two others, and a part of their distance more: what is finer than a
    cell may show more between two cells than in them."""
    out: Levels = np.maximum(level - high, low - level)
    out -= FINER * (high - low)
    np.maximum(out, np.float32(0), out=out)
    return out
