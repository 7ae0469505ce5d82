"""The scores of an image classifier: one row of K numbers for each picture, logits or probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from streamd.errors import ConfigError
from streamd.heads.common import listed
from streamd.types import ModelSpec

Scores = Literal["logits", "probabilities"]
SUM_TOLERANCE = 0.02
"""Of the sum of a row of probabilities in half precision."""


class ClassScores:
    """Reads the output of one classifier.

    Args:
        spec: the opened model.
        scores: what its output is; None to find it out with `settle`.

    Raises:
        ConfigError: the model is no classifier, or its labels do not fit.
    """

    def __init__(self, spec: ModelSpec, scores: Scores | None) -> None:
        self._path = spec.path
        shapes = [t.shape for t in spec.outputs]
        outputs = listed(spec)
        if len(shapes) != 1:
            raise ConfigError(
                f"model {spec.path}: outputs {outputs}; a classifier has one, (batch, classes); export the model with "
                "the one to be read"
            )
        inner = shapes[0][1:]
        self.classes = max(inner, default=0)
        if len(shapes[0]) not in (2, 4) or int(np.prod(inner)) != self.classes or min(inner) < 1:
            hint = "; this looks like a detector, which belongs in the section model" if len(shapes[0]) == 3 else ""
            raise ConfigError(
                f"model {spec.path}: output {outputs} is no classifier's; expected (batch, classes) or "
                f"(batch, classes, 1, 1){hint}"
            )
        if self.classes < 2:
            raise ConfigError(
                f"model {spec.path}: output {outputs} has one class; a classifier has at least two, so export it with "
                "a second one for everything else"
            )
        if len(spec.labels) != self.classes:
            what = f"{len(spec.labels)} names are" if spec.labels else "no names are"
            raise ConfigError(
                f"model {spec.path}: output {outputs} has {self.classes} classes, but {what} declared; give "
                f"model.labels: a list of {self.classes} names, or a file with one a line"
            )
        self.labels = spec.labels
        self._declared = scores
        self.scores: Scores = scores or "logits"

    def settle(self, outputs: Sequence[npt.NDArray[Any]]) -> None:
        """Finds out from the outputs for any pictures whether they are logits or probabilities.

        Raises:
            ConfigError: they cannot be what is declared, or can be both.
        """
        rows = self._rows(outputs)
        inside = bool(np.isfinite(rows).all() and rows.min() >= 0 and rows.max() <= 1)
        whole = inside and bool((abs(rows.sum(axis=1) - 1) < SUM_TOLERANCE).all())
        if self._declared == "probabilities" and not inside:
            raise ConfigError(
                f"model {self._path}: its output has values from {rows.min():.3g} to {rows.max():.3g}, which are no "
                "probabilities; declare model.output: logits"
            )
        if self._declared == "logits" and whole:
            raise ConfigError(
                f"model {self._path}: its output is between 0 and 1 and adds up to 1, so it has gone through a "
                "softmax; declare model.output: probabilities"
            )
        if self._declared is None:
            if inside and not whole:
                raise ConfigError(
                    f"model {self._path}: its output is between 0 and 1 but does not add up to 1; declare "
                    "model.output: probabilities (each class for itself) or logits"
                )
            self.scores = "probabilities" if whole else "logits"

    def __call__(self, outputs: Sequence[npt.NDArray[Any]]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """The probabilities (B, K) of a batch, and (B,) whether each row is valid; an invalid one is meaningless."""
        rows = self._rows(outputs)
        valid: npt.NDArray[np.bool_] = np.all(np.isfinite(rows), axis=1)
        if self.scores == "logits":
            rows = np.where(valid[:, None], rows, 0.0)
            rows = np.exp(rows - rows.max(axis=1, keepdims=True))
            return rows / rows.sum(axis=1, keepdims=True), valid
        slack = SUM_TOLERANCE
        valid &= (np.where(np.isfinite(rows), rows, -1) >= -slack).all(axis=1) & (rows <= 1 + slack).all(axis=1)
        return np.clip(rows, 0.0, 1.0), valid

    def _rows(self, outputs: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.float64]:
        return np.asarray(outputs[0], np.float64).reshape(len(outputs[0]), self.classes)
