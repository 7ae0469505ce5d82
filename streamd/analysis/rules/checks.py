"""Checks across the fields of zones and lines: whether their points form a shape, and whether their names exist."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Iterator, Sequence

from streamd.analysis.rules.geometry import crossing_edges
from streamd.analysis.rules.schedule import zone_problem
from streamd.analysis.rules.settings import LineSettings, Point, RuleSettings, ZoneSettings

Path_ = tuple[str | int, ...]
Problem = tuple[Path_, str]

SHORTEST = 1e-3
"""Least length of a line and least distance of corners, as a fraction of the picture."""
SMALLEST = 1e-5
"""Least area of a zone, as a fraction of the picture: 3 × 3 pixels of 1280 × 720."""


def check_rules(
    zones: Sequence[ZoneSettings], lines: Sequence[LineSettings], labels: Sequence[str] | None = None
) -> Iterator[Problem]:
    """Checks the rules of one stream.

    Args:
        zones: zones of the stream.
        lines: lines of the stream.
        labels: the model's classes in order; None if they are not known yet.

    Yields:
        Each field, as a path that begins with "zones" or "lines", and what is wrong there.
    """
    names = Counter(rule.name for rule in (*zones, *lines))
    for key, rules in (("zones", zones), ("lines", lines)):
        for i, rule in enumerate(rules):
            path = (key, i)
            if names[rule.name] > 1:
                message = f"{rule.name} is the name of {names[rule.name]} zones and lines; names must be unique"
                yield (*path, "name"), f"{message} within a stream"
            yield from _check_common(path, rule, labels)
    for i, zone in enumerate(zones):
        yield from check_polygon(("zones", i, "points"), zone.points)
    for i, line in enumerate(lines):
        yield from _check_line(("lines", i), line)


def _check_common(path: Path_, rule: RuleSettings, labels: Sequence[str] | None) -> Iterator[Problem]:
    for k, name in enumerate(rule.classes or ()):
        if isinstance(name, int):
            if name < 0 or (labels is not None and name >= len(labels)):
                known = "not negative" if labels is None else f"0 to {len(labels) - 1}"
                yield (*path, "classes", k), f"there is no class {name}; expected a number that is {known}"
        elif labels is not None and name not in labels:
            close = difflib.get_close_matches(name, labels, n=3)
            listed = f"did you mean {' or '.join(close)}?" if close else "it has " + ", ".join(labels[:20])
            yield (
                (*path, "classes", k),
                f"the model has no class {name}; {listed}{', …' * (not close and len(labels) > 20)}",
            )
    if rule.schedule is None:
        return
    if problem := zone_problem(rule.schedule.timezone):
        yield (*path, "schedule", "timezone"), problem
    for k, times in enumerate(rule.schedule.times):
        if times.start == "24:00":
            yield (*path, "schedule", "times", k, "start"), "expected a time before 24:00; midnight is 00:00"
        elif times.start == times.end:
            message = f"start and end are both {times.start}; a whole day is 00:00 to 24:00"
            yield (*path, "schedule", "times", k, "end"), message


def _outside(path: Path_, points: Sequence[Point]) -> Iterator[Problem]:
    for k, (x, y) in enumerate(points):
        if not (0 <= x <= 1 and 0 <= y <= 1):
            hint = "; points are fractions of the picture, not pixels" if max(x, y) > 2 else ""
            yield (*path, k), f"({x:g}, {y:g}) is outside the picture; expected 0 to 1{hint}"


def check_polygon(path: Path_, points: Sequence[Point]) -> Iterator[Problem]:
    """Whether points are the corners of a polygon, in order.

    Args:
        path: of the field.
        points: its value.

    Yields:
        What is wrong, and where.
    """
    if len(points) < 3:
        yield path, f"expected at least three corners, got {len(points)}"
        return
    outside = list(_outside(path, points))
    yield from outside
    repeated = False
    for k, (a, b) in enumerate(zip(points, (*points[1:], points[0]), strict=True)):
        if math.dist(a, b) < SHORTEST:
            repeated = True
            after = (k + 1) % len(points)
            message = "lies on the first one; a polygon closes by itself" if after == 0 else f"lies on corner {k}"
            yield (*path, k if after == 0 else after), f"this corner {message}; remove it"
    if outside or repeated:
        return
    if crossed := crossing_edges(points):
        first, second = crossed
        message = f"the edges from corner {first} and from corner {second} cross"
        yield path, f"{message}; give the corners in order around the zone"
    elif _area(points) < SMALLEST:
        yield path, "the corners lie on one line; expected a polygon with an area"


def _area(points: Sequence[Point]) -> float:
    ring = zip(points, (*points[1:], points[0]), strict=True)
    return abs(sum(ax * by - bx * ay for (ax, ay), (bx, by) in ring)) / 2


def _check_line(path: Path_, line: LineSettings) -> Iterator[Problem]:
    points = (*path, "points")
    if len(line.points) < 2:
        yield points, f"expected two points, got {len(line.points)}"
        return
    yield from _outside(points, line.points)
    if math.dist(*line.points) < SHORTEST:
        yield points, "the line has no length: both points are the same"
    if line.directions[0] == line.directions[1]:
        yield (*path, "directions"), f"both directions are named {line.directions[0]}; expected two different names"
