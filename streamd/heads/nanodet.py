"""NanoDet-Plus's output: (B, N, C+4·R), one row per cell, stride by stride: classes, then distributions of distances.

The distributions are those of `picodet`. A cell's reference point is its top left corner, not its centre (NanoDet 1.0,
`NanoDetPlusHead.get_single_level_center_priors`), and boxes end at the edges of the input. Classes are after the
sigmoid, the distributions before the softmax.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from streamd.errors import ConfigError
from streamd.heads import HEADS, DecodeOptions, Head, HeadSettings
from streamd.heads.coco import COCO80
from streamd.heads.common import EMPTY, as_float32, check_single, label_boxes, listed
from streamd.heads.picodet import mean_distances
from streamd.heads.validate import check_class_scores
from streamd.types import Candidates, Float32Array, ModelSpec, Outputs

STRIDES = (8, 16, 32, 64)
STEPS = 8
"""Distances in a distribution: 0 to 7 cells (`reg_max: 7`)."""


@HEADS.register
class NanodetSettings(HeadSettings):
    """NanoDet-Plus's output, (B, N, C+32), a row per cell, stride by stride: class scores from 0 to 1, then distances.

    Cells are in reading order. The distance of a side has 8 values, before the softmax.
    """

    kind: Literal["nanodet"] = "nanodet"
    strides: tuple[int, ...] = Field(STRIDES, min_length=1, description="Strides, in the order of the rows.")
    form: ClassVar[str] = "(B, N, C+32)"
    sigmoid_contradicts: ClassVar[str] = (
        ", but nanodet expects distances as logits; export the model without it, or declare another head"
    )
    usual_input: ClassVar[dict[str, Any]] = {
        "color": "BGR",
        "scale": 1,
        "mean": [103.53, 116.28, 123.675],
        "std": [57.375, 57.12, 58.395],
        "resize": "stretch",
    }

    @classmethod
    def shapes(cls, height: int, width: int, classes: int) -> tuple[tuple[int, ...], ...]:
        """See `HeadSettings.shapes`."""
        return ((1, len(_corners(height, width, STRIDES)[1]), classes + 4 * STEPS),)

    @classmethod
    def recognise(cls, spec: ModelSpec) -> HeadSettings | None:
        """See `HeadSettings.recognise`."""
        shapes = [t.shape for t in spec.outputs]
        wanted = cls.shapes(spec.input_height, spec.input_width, len(spec.labels) or len(COCO80))[0]
        return cls() if len(shapes) == 1 and shapes[0][1:] == wanted[1:] else None

    def open(self, spec: ModelSpec, options: DecodeOptions) -> Head:
        """See `HeadSettings.open`."""
        return Nanodet(self, spec, options)


class Nanodet(Head):
    """See the module."""

    def __init__(self, settings: NanodetSettings, spec: ModelSpec, options: DecodeOptions) -> None:
        shape = check_single("nanodet", "(B, N, C+32)", spec, lambda shape: shape[2] > 4 * STEPS)
        if min(settings.strides) < 1:
            raise ConfigError(f"model.head.strides: {list(settings.strides)} must all be 1 or more")
        self._corner, self._stride = _corners(spec.input_height, spec.input_width, settings.strides)
        if shape[1] != len(self._stride):
            raise ConfigError(
                f"model.head: strides {list(settings.strides)} make {len(self._stride)} rows at input "
                f"{spec.input_height}×{spec.input_width}; {spec.path} has {listed(spec)}"
            )
        self.classes = shape[2] - 4 * STEPS
        self._size = np.array([spec.input_width, spec.input_height], np.float32)
        self._options, self._path, self._checked = options, spec.path, False

    def candidates(self, outputs: Outputs, index: int) -> Candidates:
        """See `Head.candidates`. Only the distances of cells with a class above the threshold are decoded."""
        rows = as_float32(outputs[0][index])
        scores = rows[:, : self.classes]
        if not self._checked:
            check_class_scores(self._path, "nanodet", scores)
            self._checked = True
        (keep,) = np.nonzero(scores.max(axis=1) >= self._options.conf)
        if not len(keep):
            return EMPTY
        distances = self._stride[keep, None] * mean_distances(rows[keep, self.classes :])
        box = np.empty((len(keep), 4), np.float32)
        box[:, :2] = np.maximum(self._corner[keep] - distances[:, :2], 0)
        box[:, 2:] = np.minimum(self._corner[keep] + distances[:, 2:], self._size)
        return label_boxes(box, scores[keep], self._options)


def _corners(height: int, width: int, strides: tuple[int, ...]) -> tuple[Float32Array, Float32Array]:
    """(N, 2) top left corners of all cells in input pixels, stride by stride, line by line; (N,) their strides."""
    corners, repeated = [], []
    for stride in strides:
        row, column = np.indices((-(-height // stride), -(-width // stride))).reshape(2, -1)
        corners.append(np.stack([column, row], axis=1).astype(np.float32) * stride)
        repeated.append(np.full(len(row), stride, np.float32))
    return np.concatenate(corners), np.concatenate(repeated)
