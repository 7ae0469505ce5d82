"""Shared by the heads of the DETR family: a fixed number of queries, each a box and a score per class; no NMS.

Boxes are centre and size as fractions of the network's input (Carion et al. 2020, DETR). RT-DETR, D-FINE, DEIM and
RF-DETR score each class by itself, with a sigmoid, and have no background class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from streamd.errors import ConfigError, ModelError
from streamd.heads import DecodeOptions, Head
from streamd.heads.common import EMPTY, as_float32, corners, label_boxes, listed, logit, sigmoid
from streamd.heads.validate import check_numbers, mostly_outside_unit, span
from streamd.types import Candidates, Float32Array, ModelSpec, Outputs

MOST_QUERIES = 1000
"""With more rows, they are the cells of a grid, not queries. The family has 100 to 900."""
FAMILY_INPUT = {"resize": "stretch"}
"""RT-DETR, D-FINE and DEIM are trained on pictures that fill the input, RGB, 0..1."""
_SLACK = 1e-4
"""How much lower the threshold on logits is; the exact one on scores follows."""


class Pair(NamedTuple):
    """Indices of a model's outputs."""

    boxes: int
    scores: int


def find_pair(spec: ModelSpec) -> Pair | None:
    """The outputs (B, N, 4) and (B, N, C) of a model with these two, or None.

    If there are also 4 classes, the output with "box" in its name has the boxes.
    """
    shapes = [t.shape for t in spec.outputs]
    if len(shapes) != 2 or any(len(s) != 3 for s in shapes) or shapes[0][1] != shapes[1][1]:
        return None
    if not 1 <= shapes[0][1] <= MOST_QUERIES or min(s[2] for s in shapes) < 1:
        return None
    fits = [i for i in (0, 1) if shapes[i][2] == 4]
    if len(fits) == 2:
        fits = [i for i in fits if "box" in spec.outputs[i].name.lower() or spec.outputs[i].name == "dets"]
    return Pair(fits[0], 1 - fits[0]) if len(fits) == 1 else None


def require_pair(kind: str, spec: ModelSpec) -> Pair:
    """Like `find_pair`, but there must be such a pair.

    Raises:
        ConfigError: the outputs are something else.
    """
    found = find_pair(spec)
    if found is None:
        raise ConfigError(
            f"model.head: {kind} expects boxes (B, N, 4) and scores (B, N, C), N at most {MOST_QUERIES}; "
            f"{spec.path} has {listed(spec)}"
        )
    return found


def check_columns(columns: Sequence[int] | None, found: int, spec: ModelSpec) -> tuple[int, ...] | None:
    """The columns of the scores that are classes, in the order of the class names; None for all.

    Raises:
        ConfigError: a column that the model does not have, or one twice, or names for other columns than there are.
    """
    names = len(spec.labels)
    if columns is None:
        if names and names != found:
            raise ConfigError(
                f"model {spec.path}: {names} class names, but scores in {found} columns; give one name a column, or "
                "say which column each name has: model.head.columns, e.g. [1, 2, 3] where column 0 is not used"
            )
        return None
    if len(set(columns)) != len(columns) or not all(0 <= c < found for c in columns):
        raise ConfigError(
            f"model.head.columns: {list(columns)[:8]} must be different numbers of 0..{found - 1}, which are the "
            f"columns of the scores in {spec.path}"
        )
    return tuple(columns)


class QueryHead(Head):
    """Decodes boxes and scores of queries.

    Args:
        kind: for messages.
        spec: the model.
        options: thresholds.
        pair: which outputs have boxes and scores.
        classes: columns of the scores.
        columns: those that are classes, in the order of their names; None for all.
        activated: True where the model applies the sigmoid itself.
    """

    nms = False

    def __init__(
        self,
        kind: str,
        spec: ModelSpec,
        options: DecodeOptions,
        pair: Pair,
        classes: int,
        *,
        columns: Sequence[int] | None = None,
        activated: bool = False,
    ) -> None:
        self._kind, self._path, self._options, self._pair = kind, spec.path, options, pair
        self._columns = None if columns is None else np.array(columns, np.intp)
        self._activated, self._checked = activated, False
        self._least = np.float32(options.conf if activated else logit(options.conf) - _SLACK)
        self._size = np.array([spec.input_width, spec.input_height], np.float32)
        self.classes = classes if columns is None else len(columns)

    def _check(self, boxes: Float32Array, scores: Float32Array) -> None:
        """Values of the first frame tell what shapes cannot."""
        check_numbers(self._path, boxes, scores)
        if mostly_outside_unit(boxes[:, :2]):
            raise ModelError(
                f"model {self._path}: declared or recognised as {self._kind}, but its box centres are "
                f"{span(boxes[:, :2])}, not fractions of the input from 0 to 1. Export the model without its "
                "post-processing, or with all of it as labels, boxes and scores (detr_final)"
            )
        within = not mostly_outside_unit(scores)
        if self._activated and not within:
            raise ModelError(
                f"model {self._path}: declared or recognised as {self._kind} with scores after the sigmoid, but they "
                f"are {span(scores)}, not 0 to 1: declare model.head: {{kind: detr}} if these are logits"
            )
        if not self._activated and within:
            raise ModelError(
                f"model {self._path}: {self._kind} reads logits, but all class scores of the first frame are "
                f"{span(scores)}: they are probabilities. Declare model.head: {{kind: {self._kind}, activated: true}}"
            )
        self._checked = True

    def candidates(self, outputs: Outputs, index: int) -> Candidates:
        """See `Head.candidates`."""
        return self.decode(as_float32(outputs[self._pair.boxes][index]), as_float32(outputs[self._pair.scores][index]))

    def decode(self, boxes: Float32Array, scores: Float32Array) -> Candidates:
        """Candidates of one frame.

        Args:
            boxes: (N, 4) cx cy w h, fractions of the input.
            scores: (N, C') logits, or probabilities if `activated`.
        """
        if not self._checked:
            self._check(boxes, scores)
        if self._columns is not None:
            scores = scores[:, self._columns]
        (keep,) = np.nonzero(scores.max(axis=1) >= self._least)
        if not len(keep):
            return EMPTY
        values = scores[keep]
        box = boxes[keep]
        centre, size = box[:, :2] * self._size, box[:, 2:] * self._size
        return label_boxes(
            corners(centre[:, 0], centre[:, 1], size[:, 0], size[:, 1]),
            values if self._activated else sigmoid(values),
            self._options,
        )
