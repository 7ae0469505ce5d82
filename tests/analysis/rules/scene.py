"""A small stage for the engine: objects by name of their track, one frame at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from streamd.analysis.rules import RuleEvent, TrackedFrame
from streamd.analysis.rules.engine import RuleEngine
from streamd.analysis.rules.settings import LineSettings, ZoneSettings

WALL = 1_750_000_000 * 10**9
LABELS = ("person", "car")


class Scene:
    """An engine, and what it told so far.

    Pictures have 1000 × 1000 pixels, so that coordinates are thousandths. Boxes are 100 pixels high.
    """

    def __init__(
        self,
        zones: Sequence[ZoneSettings] = (),
        lines: Sequence[LineSettings] = (),
        *,
        wall_ns: int = WALL,
        state: Mapping[str, Any] | None = None,
        labels: Sequence[str] = LABELS,
    ) -> None:
        names = (f"e{n}" for n in itertools.count())
        self.engine = RuleEngine(zones, lines, labels, lambda: next(names), wall_ns, state)
        self.wall_ns = wall_ns
        self.events: list[RuleEvent] = []
        self.t = 0.0
        self.seq = -1
        self.size = (1000, 1000)

    def frame(
        self,
        feet: Mapping[int, tuple[float, float]],
        t: float | None = None,
        *,
        height: float = 100,
        ended: Sequence[tuple[int, str]] = (),
        confirmed: Mapping[int, bool] | None = None,
        classes: Mapping[int, int] | None = None,
    ) -> list[RuleEvent]:
        """One frame in which tracks stand with their feet there; 0.1 s after the last one unless `t` says otherwise."""
        self.t = self.t + 0.1 if t is None else t
        self.seq += 1
        boxes = [(x - 20, y - height, x + 20, y) for x, y in feet.values()]
        told = self.engine.frame(
            TrackedFrame(
                t_ns=5 * 10**12 + round(self.t * 1e9),
                wall_ns=self.wall_ns + round(self.t * 1e9),
                epoch=0,
                seq=self.seq,
                width=self.size[0],
                height=self.size[1],
                track=np.array(list(feet), np.int64),
                confirmed=np.array([(confirmed or {}).get(k, True) for k in feet], np.bool_),
                xyxy=np.clip(np.array(boxes, np.float32).reshape(-1, 4), 0, 1000),
                score=np.full(len(feet), 0.9, np.float32),
                class_id=np.array([(classes or {}).get(k, 0) for k in feet], np.int32),
                ended=ended,
            )
        )
        self.events += told
        return told

    def walk(
        self, track: int, *points: tuple[float, float], steps: int = 10, each: Callable[[int], None] | None = None
    ) -> None:
        """Moves one track along points, so many frames from one to the next."""
        for (x0, y0), (x1, y1) in itertools.pairwise(points):
            for k in range(steps):
                self.frame({track: (x0 + (x1 - x0) * k / steps, y0 + (y1 - y0) * k / steps)})
                if each is not None:
                    each(k)

    def told(self) -> list[tuple[str, str]]:
        """Phase and change of all events so far."""
        return [(e.phase, e.change) for e in self.events]

    def lines(self) -> list[tuple[str | None, bool]]:
        """Direction and certainty of all crossings so far."""
        return [(e.direction, e.certain) for e in self.events if e.kind == "line"]
