"""What the network found in a frame, and what that says of the time until its next answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from streamd.analysis.glance.cells import Cells
from streamd.analysis.glance.moved import Moved
from streamd.analysis.glance.places import ENLARGED, Shape, cells_of
from streamd.types import Look

SPEED = 0.25
"""A track moves if it goes this many widths or heights of its box in a second."""
MOVES = 3
"""Where something has moved, so many cells have strayed. Elsewhere, a box only trembles."""
FEW = 6
"""Objects whose paths are known without looking at every frame, if they are apart."""
FASTEST = 0.5
"""Widths or heights of its box that an object may go in two frames, for its place to be known without a look."""


class Strayed(NamedTuple):
    """What has moved between two looks."""

    since_ns: int
    """Time of the earlier one, on the clock of the gate."""
    cells: Cells | None
    """(ROWS, COLUMNS) those that strayed in pictures since in which something may have moved; None if there were
    none."""


@dataclass(slots=True, frozen=True)
class Answer:
    """What the network found in a frame."""

    look: Look
    boxes: npt.NDArray[np.float32]
    """(N, 4) corners in upright pixels."""
    velocity: npt.NDArray[np.float64] | None
    """(N, 2) pixels per second; None without tracking."""
    speed: npt.NDArray[np.float64] | None
    """(N,) widths or heights of its box that each goes in a second; None without tracking."""
    numbers: dict[int, int]
    """The row of each confirmed track."""

    def since(self, before: Answer, shape: Shape) -> None:
        """Slows down tracks that have hardly moved since the look before, and stops those where nothing has. While
        nothing moves, looks are rare and the tracker's clock stands still: it takes a box that trembles for one that
        moves fast."""
        passed_s = (self.look.at_ns - before.look.at_ns) / 1e9
        if self.speed is None or passed_s <= 0:
            return
        for number, i in self.numbers.items():
            if (j := before.numbers.get(number)) is not None and self.speed[i] > SPEED:
                left, top, right, bottom = self.boxes[i].tolist()
                a, b, c, d = before.boxes[j].tolist()
                across = abs(left + right - a - c) / max(right - left, 1)
                down = abs(top + bottom - b - d) / max(bottom - top, 1)
                self.speed[i] = min(self.speed[i], max(across, down) / 2 / passed_s)
        if isinstance(self.look.moved, Moved) and not self.look.moved.moving:
            for i in np.flatnonzero(self.speed > SPEED).tolist():
                if not self.moved(i, before, shape):
                    self.speed[i] = 0

    def moved(self, i: int, before: Answer, shape: Shape) -> bool:
        """Whether something has moved in box `i`, or close by, since the look before; also if that is not known."""
        strayed = self.look.strayed
        if not isinstance(strayed, Strayed) or strayed.since_ns != before.look.at_ns:
            return True
        if strayed.cells is None:
            return False
        return int(np.count_nonzero(strayed.cells & cells_of(self.boxes[i : i + 1], shape))) >= MOVES

    @property
    def fastest(self) -> float:
        """The highest speed."""
        return float(self.speed.max()) if self.speed is not None and len(self.speed) else 0.0

    @property
    def clear(self) -> bool:
        """Whether none can be taken for another: they have tracks, are few, and are all apart or all stand."""
        n = len(self.boxes)
        if self.speed is None or n > FEW:
            return False
        if n < 2 or not self.moving:
            return True
        margin = ENLARGED * (self.boxes[:, 2:] - self.boxes[:, :2])
        low, high = self.boxes[:, :2] - margin, self.boxes[:, 2:] + margin
        meet = ((low[:, None] < high[None]) & (low[None] < high[:, None])).all(axis=2)
        return int(np.count_nonzero(meet)) == n

    @property
    def moving(self) -> bool:
        """Whether a track moves."""
        return self.fastest > SPEED

    def swept(self, passed_s: float) -> npt.NDArray[np.float32]:
        """(N, 4) what the boxes have covered so many seconds later, if they go on as they did."""
        if self.velocity is None or not len(self.boxes):
            return self.boxes
        way = (self.velocity * passed_s).astype(np.float32)
        out: npt.NDArray[np.float32] = self.boxes.copy()
        out[:, :2] += np.minimum(way, 0)
        out[:, 2:] += np.maximum(way, 0)
        return out
