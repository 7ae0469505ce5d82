"""What one small picture shows."""

from __future__ import annotations

from typing import NamedTuple

from streamd.analysis.glance.cells import Cells


class Moved(NamedTuple):
    """What one small picture shows."""

    score: float
    """Of the 3 × 3 cells that stray most: the sum of distances, each as a multiple of its cell's limit."""
    threshold: float
    """The score at which something moves."""
    cells: Cells
    """(ROWS, COLUMNS) which ones stray."""
    share: float
    """Fraction of the cells that do."""
    light: bool = False
    """The whole picture has changed."""
    shift: tuple[float, float] = (0.0, 0.0)
    """By how much it was shifted to the right and down, in cells; 0 where that was not asked."""
    place: int = 0
    """The cell in the middle of those of `score`, counted row by row."""
    shaken: bool = False
    """The picture shakes."""

    @property
    def moving(self) -> bool:
        """Whether something moves."""
        return self.light or self.score >= self.threshold

    @property
    def faint(self) -> bool:
        """Whether something may be moving."""
        return self.score >= self.threshold / 2
