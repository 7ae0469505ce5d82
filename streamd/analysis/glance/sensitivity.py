"""The score from which on something moves in a stream, found by what the network finds there."""

from __future__ import annotations

from streamd.analysis.glance.cells import Cells
from streamd.analysis.glance.moved import Moved

FIRST_SCORE, LEAST_SCORE, MOST_SCORE = 3.0, 2.5, 8.0
"""The score at which something moves. 3 is one cell far beyond its limit or three just beyond it."""
FALSE_STEP, TRUE_STEP, CALM_STEP = 0.05, 0.02, 0.0005
"""How it changes with a look that found nothing where something moved, one that did, and a still frame."""
SURE = 2.0
"""A look that finds something does not make more sensitive where the score was so many times the least anyway."""
SCALE = 15.0
"""The product of sensitivity and score."""


class Sensitivity:
    """That of one stream. For one thread.

    Args:
        fixed: from 1 to 10; None to find it.
    """

    def __init__(self, fixed: float | None = None) -> None:
        self._found = fixed is None
        self.threshold = FIRST_SCORE if fixed is None else SCALE / fixed

    @property
    def value(self) -> float:
        """1 to 10; see `LookSettings.sensitivity`."""
        return SCALE / self.threshold

    def calm(self) -> None:
        """Nothing moved in a frame."""
        if self._found and self.threshold > FIRST_SCORE:
            self.threshold -= CALM_STEP

    def answered(self, moved: Moved, boxes: Cells, moving: Cells) -> None:
        """What the network found in a frame.

        Args:
            moved: what was seen to move there.
            boxes: (ROWS, COLUMNS) cells with boxes, somewhat enlarged.
            moving: those of objects that move.
        """
        if not self._found or moved.light or not moved.share or moved.score < moved.threshold:
            return
        known = bool(moving.flat[moved.place])
        if known and moved.score < SURE * moved.threshold:
            self.threshold = max(self.threshold - TRUE_STEP, LEAST_SCORE)
        elif not known and not boxes.flat[moved.place]:
            self.threshold = min(self.threshold + FALSE_STEP, MOST_SCORE)
