"""Which pairs are looked at, how alike they are, and which are taken."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamd.analysis.tracking.pairs import Pairs, Rectangles, match, meeting


def place(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.vstack((rng.uniform(0, 400, (2, n)), rng.uniform(5, 120, (2, n))))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=6),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_exactly_the_pairs_of_a_stream_that_overlap_meet(sizes: list[tuple[int, int]], crowd: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    if crowd:
        # Far more than the others have: padding to it would cost more than going stream by stream.
        sizes = [*sizes, (150, 150)]
    tracks = [place(rng, n) for n, _ in sizes]
    boxes = [place(rng, m) for _, m in sizes]
    rows, columns = meeting(
        Rectangles.around(np.hstack(tracks), tuple(n for n, _ in sizes)),
        Rectangles.around(np.hstack(boxes), tuple(m for _, m in sizes)),
    )
    surely: set[tuple[int, int]] = set()
    perhaps: set[tuple[int, int]] = set()
    row = column = 0
    for t, b in zip(tracks, boxes, strict=True):
        overlap = ((t[2:, :, None] + b[2:, None]) / 2 - np.abs(t[:2, :, None] - b[:2, None])).min(axis=0)
        # Corners are single precision: less than a thousandth of a pixel may go either way.
        for found, least in ((surely, 1e-3), (perhaps, -1e-3)):
            found |= {(row + int(i), column + int(j)) for i, j in np.argwhere(overlap > least)}
        row, column = row + t.shape[1], column + b.shape[1]
    found = set(zip(rows.tolist(), columns.tolist(), strict=True))
    assert surely <= found <= perhaps
    assert len(rows) == len(found)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    low, high = np.maximum(a[:2] - a[2:] / 2, b[:2] - b[2:] / 2), np.minimum(a[:2] + a[2:] / 2, b[:2] + b[2:] / 2)
    both = float(np.prod(np.maximum(high - low, 0)))
    return both / (float(a[2] * a[3] + b[2] * b[3]) - both)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 60))
def test_likeness_is_the_overlap_of_the_grown_boxes(seed: int, reach: float) -> None:
    rng = np.random.default_rng(seed)
    tracks, boxes = place(rng, 5), place(rng, 6)
    rows, columns = (index.ravel() for index in np.indices((5, 6)))
    found = Pairs(rows, columns, tracks, np.full(5, reach), boxes).alike()
    for value, i, j in zip(found, rows, columns, strict=True):
        a, b = tracks[:, i].copy(), boxes[:, j].copy()
        ratio = b[3] / a[3]
        a[2:] += 2 * reach
        b[2:] += 2 * reach * ratio
        assert value == pytest.approx(iou(a, b) * min(ratio, 1 / ratio) ** 0.5, abs=1e-9)


def test_a_box_is_entirely_like_itself() -> None:
    one = np.array([[10.0], [20.0], [30.0], [40.0]])
    pair = np.zeros(1, np.intp)
    assert Pairs(pair, pair, one, np.array([12.0]), one).alike().tolist() == [1.0]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12))
def test_the_best_pair_left_is_taken_until_none_is(seed: int, n: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    key = rng.permutation(n * m).astype(float)
    able = rng.random(n * m) < 0.6
    rows, columns = (index.ravel() for index in np.indices((n, m)))
    taken = match(key, able, rows, columns, n, m)
    left = {int(p): float(key[p]) for p in np.flatnonzero(able)}
    expected = []
    while left:
        best = max(left, key=lambda p: left[p])
        expected.append(best)
        left = {p: k for p, k in left.items() if rows[p] != rows[best] and columns[p] != columns[best]}
    assert taken == sorted(expected)
