"""What camera health measures of a small luma picture: brightness, texture and edges, by cell.

Sharpness is the energy of differences between neighbours in relation to that over four pixels: a step edge keeps the
second and loses the first when it is defocused (as in the relative blur of Crete et al., "The blur effect", 2007; here
with squares, since sums of absolute differences do not change along an edge). Edges are gradients compressed by
g / (|g| + c), so that the light of the scene hardly matters and a few strong edges do not decide alone.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Luma = npt.NDArray[np.uint8]

CELL = 10
"""Pixels of the small picture along a cell."""
SOFT = 3.0
"""A gradient of this many levels is compressed to a half."""


class Measures(NamedTuple):
    """Of one picture of (H, W), with (R, C) cells."""

    mean: Floats
    """(R, C) levels."""
    fine: Floats
    """(R, C) mean squared difference between neighbours, horizontal and vertical together, in squared levels."""
    coarse: Floats
    """(R, C) the same over four pixels of the picture."""
    edges: Floats
    """(2, H/2 - 2, W/2 - 2) compressed gradients of the picture at half its size, rightwards and down."""


@lru_cache(maxsize=64)
def _pools(length: int, cells: int) -> Floats:
    """(cells, length) matrix of averages over `cells` equal parts."""
    owner = np.arange(length) * cells // length
    matrix = (owner == np.arange(cells)[:, None]).astype(np.float32)
    matrix /= matrix.sum(axis=1, keepdims=True)
    return np.ascontiguousarray(matrix)


def by_cell(values: Floats, shape: tuple[int, int]) -> Floats:
    """Averages (h, w) values over (R, C) cells."""
    pooled: Floats = _pools(values.shape[0], shape[0]) @ values @ _pools(values.shape[1], shape[1]).T
    return pooled


def cells_of(height: int, width: int) -> tuple[int, int]:
    """(R, C) of a picture."""
    return max(2, height // CELL), max(2, width // CELL)


def measure(picture: Floats) -> Measures:
    """Measures a picture (H, W) of levels, at least 20 pixels high and wide."""
    height, width = picture.shape[0] // 2 * 2, picture.shape[1] // 2 * 2
    picture = picture[:height, :width]
    shape = cells_of(height, width)
    across = picture[:-1, 1:] - picture[:-1, :-1]
    down = picture[1:, :-1] - picture[:-1, :-1]
    across *= across
    down *= down
    across += down
    rows = picture[0::2] + picture[1::2]
    half = rows[:, 0::2] + rows[:, 1::2]
    half *= 0.25
    edges = np.empty((2, half.shape[0] - 2, half.shape[1] - 2), np.float32)
    np.subtract(half[1:-1, 2:], half[1:-1, :-2], out=edges[0])
    np.subtract(half[2:, 1:-1], half[:-2, 1:-1], out=edges[1])
    squares = edges * edges
    squares[0] += squares[1]
    coarse = by_cell(squares[0], shape)
    strength = np.abs(edges)
    strength += SOFT
    edges /= strength
    return Measures(by_cell(half, shape), by_cell(across, shape), coarse, edges)


def agreement(edges: Floats, others: Floats, shape: tuple[int, int]) -> tuple[Floats, Floats]:
    """How well the edges of two pictures agree.

    Args:
        edges: (2, h, w)
        others: likewise.
        shape: (R, C).

    Returns:
        (R, C) correlation, -1 to 1; (R, C) energy of `others`: without edges there, a correlation means nothing.
    """
    products, mine, theirs = edges * others, edges * edges, others * others
    both = by_cell(products[0] + products[1], shape)
    own, other = by_cell(mine[0] + mine[1], shape), by_cell(theirs[0] + theirs[1], shape)
    correlation: Floats = both / np.sqrt(own * other + np.float32(1e-12))
    return correlation, other


def changed_blocks(picture: Luma, before: Luma) -> float:
    """Share of blocks of 1 x 8 pixels with any difference at all."""
    width = picture.shape[1] // 8 * 8
    a = np.ascontiguousarray(picture[:, :width]).view(np.uint64)
    b = np.ascontiguousarray(before[:, :width]).view(np.uint64)
    return float(np.count_nonzero(a != b)) / a.size
