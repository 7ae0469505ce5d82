"""Polygons and edges against plain scalar code."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamd.analysis.rules.geometry import (
    Border,
    Boxes,
    Sides,
    as_rows,
    crossing_edges,
    distance,
    inside,
    iou,
    pad_polygons,
)

SIZE = (1000, 500)
unit = st.floats(0.01, 0.99)
points = st.tuples(unit, unit)


def winding(polygon: list[tuple[float, float]], x: float, y: float) -> bool:
    """Sum of the angles under which the edges are seen: a multiple of a full turn, odd inside."""
    total = 0.0
    for (ax, ay), (bx, by) in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
        turn = math.atan2(by - y, bx - x) - math.atan2(ay - y, ax - x)
        total += (turn + math.pi) % (2 * math.pi) - math.pi
    return round(total / (2 * math.pi)) % 2 == 1


def near(polygon: list[tuple[float, float]], x: float, y: float) -> float:
    found = []
    for (ax, ay), (bx, by) in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
        d2 = (bx - ax) ** 2 + (by - ay) ** 2
        share = 0.0 if d2 == 0 else min(max(((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / d2, 0), 1)
        found.append(math.hypot(x - ax - share * (bx - ax), y - ay - share * (by - ay)))
    return min(found)


@given(st.lists(st.lists(points, min_size=3, max_size=9), min_size=1, max_size=5), points)
def test_inside_and_distance_equal_scalar_code(
    polygons: list[list[tuple[float, float]]], point: tuple[float, float]
) -> None:
    edges = pad_polygons(polygons, *SIZE)
    x, y = point[0] * SIZE[0], point[1] * SIZE[1]
    at_once = Sides(edges).inside(np.array([[x, y]]))[0]
    for k, polygon in enumerate(polygons):
        scaled = [(px * SIZE[0], py * SIZE[1]) for px, py in polygon]
        far = near(scaled, x, y)
        assert distance(edges[:4, k].T.tolist(), x, y) == pytest.approx(far, abs=1e-6)
        if far > 1e-6:
            assert bool(inside(edges[:, k], np.array([x]), np.array([y]))) == winding(scaled, x, y)
            assert bool(at_once[k]) == winding(scaled, x, y)


def test_a_zone_at_the_edge_of_the_picture_contains_the_edge() -> None:
    edges = pad_polygons([[(0, 0), (1, 0), (1, 1), (0, 1)]], *SIZE)
    for x in (0.0, 500.0, 1000.0):
        for y in (0.0, 250.0, 500.0):
            assert inside(edges[:, 0], np.array([x]), np.array([y]))


@given(st.lists(st.tuples(st.floats(1, 1.9), st.floats(0.1, 0.4)), min_size=4, max_size=12))
def test_corners_in_order_around_a_point_make_a_simple_polygon(steps: list[tuple[float, float]]) -> None:
    turn = 2 * math.pi / sum(step for step, _ in steps)
    angles = [turn * a for a in itertools.accumulate(step for step, _ in steps)]
    radii = [radius for _, radius in steps]
    corners = [(0.5 + r * math.cos(a), 0.5 + r * math.sin(a)) for a, r in zip(angles, radii, strict=True)]
    assert crossing_edges(corners) is None


def test_crossing_edges_are_named() -> None:
    assert crossing_edges([(0, 0), (1, 1), (1, 0), (0, 1)]) == (0, 2)
    assert crossing_edges([(0, 0), (1, 0), (1, 1), (0, 1)]) is None
    # Two corners in the same place touch, as does a corner on an edge.
    assert crossing_edges([(0, 0), (1, 0), (0.5, 0.0), (1, 1), (0, 1)]) is not None
    assert crossing_edges([(0, 0), (1, 0), (1, 1)]) is None


def test_the_edge_of_the_picture_or_of_what_is_looked_at() -> None:
    boxes = Boxes(np.array([[0, 10, 20, 40], [30, 30, 60, 99.5], [30, 30, 60, 60]], np.float32))
    hit = Border((0, 0, 100, 100)).touched(boxes)
    assert hit is not None
    assert hit.tolist() == [[True, False, False, False], [False, False, False, True], [False] * 4]
    assert Border((0, 0, 100, 100)).touched(Boxes(boxes.xyxy[2:].astype(np.float32))) is None
    part = Border((30, 0, 100, 100)).touched(boxes)
    assert part is not None
    assert part[2].tolist() == [True, False, False, False]


def test_iou() -> None:
    assert iou((0, 0, 10, 10), [(0, 0, 10, 10), (5, 0, 15, 10), (20, 20, 30, 30)]) == pytest.approx([1, 1 / 3, 0])


def test_assigning_rows_equals_an_indexed_assignment() -> None:
    rng = np.random.default_rng(1)
    array, index = rng.random((50, 7)), rng.permutation(50)[:20]
    expected, rows = array.copy(), rng.random((20, 7))
    expected[index] = rows
    as_rows(array)[index] = as_rows(rows)
    assert (array == expected).all()
