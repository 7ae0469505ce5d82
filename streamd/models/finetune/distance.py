"""How far an INT8 model's outputs are from the float model's, where it matters for boxes.

Compared are the results of the output convolutions, before any decoding. Where the number of classes tells which
channels are scores and which are boxes, a position counts by the root of the float model's own score there, and a class
by its probability: most positions are background, and what they say about boxes and classes is noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from streamd.models.finetune.operators import vendor

BOXES = 4.0
"""How much the mean squared error of a position's box counts, beside 1 for its objectness and its class."""
SHARPNESS = 0.75
"""A position counts by this power of its score: by 1, faint boxes count nothing; by 0.5, objects hardly do."""
FAINT = 1e-6
"""Score that every position has at least."""


class Distance:
    """Compares the results of a model's output convolutions, (B, C, H, W) each.

    Args:
        classes: that the model tells apart; None if that is not known.
    """

    def __init__(self, classes: int | None) -> None:
        self._classes = classes

    def __call__(self, made: Sequence[Any], wanted: Sequence[Any]) -> Any:
        """A scalar tensor.

        Args:
            made: of the INT8 model.
            wanted: of the float model for the same pictures, in the same order.
        """
        torch = vendor()
        totals: list[Any] = []
        weights: list[Any] = []
        levels: dict[tuple[int, ...], list[tuple[Any, Any]]] = {}
        for y, t in zip(made, wanted, strict=True):
            levels.setdefault(tuple(t.shape[2:]) if t.ndim == 4 else (-1,), []).append((y, t))
        for size, maps in levels.items():
            if len(size) != 2 or self._classes is None or not self._detects(maps):
                # Nothing is known of them: the error over the values' power, everywhere.
                for y, t in maps:
                    totals.append(torch.square(y - t).mean() / torch.square(t).mean().clamp(min=1e-12))
                    weights.append(torch.ones((), device=t.device))
                continue
            error, score = self._level(maps)
            weight = score.clamp(min=FAINT).pow(SHARPNESS)
            totals.append((error * weight).sum())
            weights.append(weight.sum())
        return torch.stack(totals).sum() / torch.stack(weights).sum()

    def _detects(self, maps: Sequence[tuple[Any, Any]]) -> bool:
        """Whether there are class scores among them."""
        return any(self._kind(t.shape[1]) in ("rows", "classes", "joined") for _, t in maps)

    def _kind(self, channels: int) -> str:
        """rows (box, objectness and classes for each anchor), classes, joined (classes, then boxes), score or box."""
        assert self._classes is not None
        if channels % (5 + self._classes) == 0:
            return "rows"
        if channels == self._classes:
            return "classes"
        if channels > self._classes and (channels - self._classes) % 4 == 0 and channels != 4:
            return "joined"
        return "score" if channels == 1 else "box"

    def _level(self, maps: Sequence[tuple[Any, Any]]) -> tuple[Any, Any]:
        """(B, A, H, W) squared error and score of each position of one level."""
        torch = vendor()
        assert self._classes is not None
        error: Any = 0
        score: Any = 1
        for y, t in maps:
            kind = self._kind(t.shape[1])
            anchors = t.shape[1] // (5 + self._classes) if kind == "rows" else 1
            wanted = t.unflatten(1, (anchors, -1))
            squares = torch.square(y.unflatten(1, (anchors, -1)) - wanted)
            # Ends of box, objectness and classes, in the order that each kind has them.
            if kind == "rows":
                box, sure, scores = slice(0, 4), slice(4, 5), slice(5, None)
            elif kind == "classes":
                box, sure, scores = slice(0, 0), slice(0, 0), slice(None)
            elif kind == "joined":
                box, sure, scores = slice(self._classes, None), slice(0, 0), slice(0, self._classes)
            else:
                box, sure, scores = (slice(None) if k == kind else slice(0, 0) for k in ("box", "score", ""))
            if squares[:, :, box].shape[2]:
                error = error + BOXES * squares[:, :, box].mean(2)
            if squares[:, :, sure].shape[2]:
                error = error + squares[:, :, sure].sum(2)
                score = score * torch.sigmoid(wanted[:, :, sure]).sum(2)
            if squares[:, :, scores].shape[2]:
                likely = torch.sigmoid(wanted[:, :, scores])
                error = error + (squares[:, :, scores] * likely).sum(2) / likely.sum(2).clamp(min=1e-6)
                score = score * likely.amax(2)
        return error, score
