"""Paths of objects past lines and zones, and what they truly cross.

Truth is worked out on the whole path (100 points a second, no noise) by runs of sides, in code that shares nothing with
the engine's.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from streamd.analysis.rules.settings import LineSettings, ZoneSettings

WIDTH, HEIGHT = 1280, 720


STEP = 0.01


SETTLE = 0.5


BAND = 0.1


LINES = (
    LineSettings(name="north", points=((0.1, 0.3), (0.45, 0.34)), settle_s=SETTLE),
    LineSettings(name="gate", points=((0.62, 0.25), (0.6, 0.75)), settle_s=SETTLE),
    LineSettings(name="south", points=((0.5, 0.8), (0.15, 0.74)), settle_s=SETTLE),
)


ZONES = (
    ZoneSettings(name="yard", points=((0.7, 0.3), (0.95, 0.35), (0.9, 0.8), (0.72, 0.7)), stationary_s=3),
    ZoneSettings(name="path", points=((0.05, 0.45), (0.5, 0.42), (0.52, 0.65), (0.3, 0.52), (0.06, 0.66))),
)


KINDS = ("cross", "cross", "cross", "cross", "graze", "stop", "turn", "past", "born", "zone")


Floats = npt.NDArray[np.float64]


@dataclass
class Walk:
    """One object."""

    kind: str
    start: float
    """Seconds."""
    xy: Floats
    """(T, 2) its feet, every STEP seconds."""
    height: float
    """Of its box, in pixels."""

    @property
    def end(self) -> float:
        return self.start + (len(self.xy) - 1) * STEP

    def at(self, t: float) -> Floats | None:
        """Where it is; None where it is not there."""
        k = round((t - self.start) / STEP)
        return self.xy[k] if 0 <= k < len(self.xy) else None


@dataclass(frozen=True)
class TrueCrossing:
    walk: int
    line: int
    direction: str
    t: float


def resample(points: list[tuple[float, float]], speeds: list[float]) -> Floats:
    """Positions every STEP seconds along legs at their speeds (pixels a second; 0: so many seconds' stop, negative)."""
    out = [np.array([points[0]])]
    for (a, b), speed in zip(itertools.pairwise(points), speeds, strict=True):
        seconds = -speed if speed <= 0 else float(np.hypot(b[0] - a[0], b[1] - a[1])) / speed
        steps = max(round(seconds / STEP), 1)
        share = np.arange(1, steps + 1)[:, None] / steps
        out.append(np.array(a) + share * (np.array(b) - np.array(a)))
    return np.concatenate(out)


def draw(rng: np.random.Generator, kind: str, start: float) -> Walk:
    """A walk of that kind, near one of the lines or zones."""
    height = float(rng.uniform(50, 160))
    speed = height * rng.uniform(0.4, 2.0)
    line = LINES[rng.integers(len(LINES))]
    a, b = (np.array(p) * (WIDTH, HEIGHT) for p in line.points)
    along = (b - a) / np.hypot(*(b - a))
    normal = np.array((-along[1], along[0])) * rng.choice((-1, 1))
    length = float(np.hypot(*(b - a)))
    slant = along * rng.uniform(-0.6, 0.6)
    on = a + along * length * rng.uniform(0.2, 0.8)
    far = float(rng.uniform(1.2, 2.5)) * height
    near, beyond = on - (normal + slant) * far, on + (normal + slant) * far

    def path(*points: Floats, speeds: list[float]) -> Walk:
        return Walk(kind, start, resample([(float(x), float(y)) for x, y in points], speeds), height)

    if kind == "cross":
        bend = on - (normal + slant) * far * 0.5 + along * rng.uniform(-0.3, 0.3) * height
        return path(near, bend, beyond, speeds=[speed, speed * rng.uniform(0.7, 1.4)])
    if kind == "graze":
        touch = on - normal * height * rng.uniform(0.15, 0.5)
        return path(near, touch, near + along * height, speeds=[speed, speed])
    if kind == "stop":
        stop = on + normal * height * rng.uniform(-0.03, 0.03)
        wait = -float(rng.uniform(0.6, 5))
        last = beyond if rng.random() < 0.5 else near + along * 0.5 * height
        return path(near, stop, stop + along * 0.02 * height, last, speeds=[speed, wait, speed])
    if kind == "turn":
        # Over the line and back after a time that is clearly shorter or longer than settle_s.
        depth = height * rng.uniform(0.2, 1.2)
        apex = on + normal * depth
        away = rng.uniform(0.1, 0.3) if rng.random() < 0.5 else rng.uniform(0.8, 3.0)
        fast = max(2 * depth / away, speed)
        wait = max(away - 2 * depth / fast, STEP)
        back = on - normal * far + along * height * 0.3
        return path(near, on, apex, apex + along * 0.01, on + along * 0.2 * height, back,
                    speeds=[speed, fast, -wait, fast, speed])  # fmt: skip
    if kind == "past":
        end, out = (a, -along) if rng.random() < 0.5 else (b, along)
        beside = end + out * height * rng.uniform(0.3, 1.0)
        return path(beside - normal * far, beside + normal * far, speeds=[speed])
    if kind == "born":
        first = on - normal * height * rng.uniform(0.25, 0.8)
        return path(first, beyond, speeds=[speed])
    zone = ZONES[rng.integers(len(ZONES))]
    corners = np.array(zone.points) * (WIDTH, HEIGHT)
    weights = rng.dirichlet(np.ones(len(corners)))
    inside = weights @ corners
    angle = rng.uniform(0, 2 * np.pi)
    out = inside + np.array((np.cos(angle), np.sin(angle))) * 350
    wait = -float(rng.uniform(0.5, 4))
    return path(inside, inside + np.array((0.5, 0.0)), out, speeds=[wait, speed])


def sides(walk: Walk, line: LineSettings) -> tuple[Floats, Floats, float]:
    """Signed distance from the line (positive on its right) and position along it in 0..1; its length."""
    a, b = (np.array(p) * (WIDTH, HEIGHT) for p in line.points)
    d = b - a
    length = float(np.hypot(*d))
    p = walk.xy - a
    return (d[0] * p[:, 1] - d[1] * p[:, 0]) / length, (p @ d) / length**2, length


def true_crossings(number: int, walk: Walk) -> tuple[list[TrueCrossing], bool]:
    """What crosses by the definition: stays beyond for SETTLE and gets clear, with a path that cut between the ends.

    Returns:
        The crossings; whether the walk is too near to a limit of the definition for any observer to tell.
    """
    found: list[TrueCrossing] = []
    unclear = False
    for k, line in enumerate(LINES):
        off, along, length = sides(walk, line)
        side = np.where(off >= 0, 1, -1)
        cuts = np.nonzero(side[1:] != side[:-1])[0] + 1
        bounds = [0, *cuts.tolist(), len(side)]
        if len(cuts):
            beyond_end = np.abs(along[cuts] - 0.5) - 0.5
            unclear |= bool((np.abs(beyond_end) * length < 0.12 * walk.height).any())
        else:
            continue
        home, net = int(side[0]), 0
        unclear |= np.abs(off[: bounds[1]]).max() < 0.2 * walk.height
        for begin, end in itertools.pairwise(bounds[1:]):
            now = int(side[begin])
            within = 0 <= along[begin] <= 1
            net += int(within) if now != home else -int(within)
            stays = (end - begin) * STEP
            reach = float(np.abs(off[begin:end]).max())
            last = end == len(side)
            if not last and SETTLE - 0.15 < stays < SETTLE + 0.25:
                unclear = True
            if 0.03 * walk.height < reach < 0.2 * walk.height:
                unclear = True
            settles = (last or stays >= SETTLE) and reach > BAND * walk.height
            if not settles:
                continue
            if now == home:
                net = 0
                continue
            if net > 0:
                found.append(TrueCrossing(number, k, line.directions[0 if now > 0 else 1], walk.start + begin * STEP))
            home, net = now, 0
    return found, unclear
