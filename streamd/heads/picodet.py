"""PicoDet's and PP-YOLOE's outputs without post-processing: for each stride, classes and distributions of distances.

For each of the distances left, top, right and bottom of a cell's centre, the model gives a distribution over 0, 1, …,
R−1 cells; the distance is its mean (Li et al. 2020, Generalized Focal Loss). Box = centre ± distances, in input pixels.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field

from streamd.errors import ConfigError
from streamd.heads import HEADS, DecodeOptions, Head, HeadSettings
from streamd.heads.coco import COCO80
from streamd.heads.common import EMPTY, IMAGENET, as_float32, label_boxes, listed
from streamd.heads.validate import check_class_scores
from streamd.types import Candidates, Float32Array, ModelSpec, Outputs

STRIDES = (8, 16, 32, 64, 128)
"""Strides by which those of a model are recognised from its number of rows."""
STEPS = (8, 17)
"""Number of distances in a distribution: PicoDet's 0 to 7 cells, PP-YOLOE's 0 to 16."""


class _Level(NamedTuple):
    """One stride: the indices of its outputs with classes and distributions."""

    stride: int
    classes: int
    distances: int


@HEADS.register
class PicodetSettings(HeadSettings):
    """PicoDet and PP-YOLOE without post-processing: class scores (B, N, C) and distances (B, N, 4·R) for each stride.

    Class scores are from 0 to 1. The distance of a side has R values, before the softmax. Outputs may be in any order.
    """

    kind: Literal["picodet"] = "picodet"
    classes: int | None = Field(
        None, ge=1, description="Number of classes, if neither names nor shapes tell class scores from distances."
    )
    form: ClassVar[str] = "(B, N, C) and (B, N, 4·R) per stride"
    usual_input: ClassVar[dict[str, Any]] = {**IMAGENET, "resize": "stretch"}

    @classmethod
    def shapes(cls, height: int, width: int, classes: int) -> tuple[tuple[int, ...], ...]:
        """See `HeadSettings.shapes`."""
        rows = [_rows(height, width, s) for s in STRIDES[:4]]
        return (*((1, n, classes) for n in rows), *((1, n, 4 * STEPS[0]) for n in rows))

    @classmethod
    def recognise(cls, spec: ModelSpec) -> HeadSettings | None:
        """See `HeadSettings.recognise`."""
        return cls() if _levels(spec, None) else None

    def open(self, spec: ModelSpec, options: DecodeOptions) -> Head:
        """See `HeadSettings.open`."""
        return Picodet(self, spec, options)


def _rows(height: int, width: int, stride: int) -> int:
    return -(-height // stride) * -(-width // stride)


def _levels(spec: ModelSpec, classes: int | None) -> list[_Level]:
    """The finest first; empty if the outputs are not such pairs, or if it is uncertain which is which."""
    strides = {_rows(spec.input_height, spec.input_width, s): s for s in reversed(STRIDES)}
    pairs: dict[int, list[int]] = {}
    for i, tensor in enumerate(spec.outputs):
        if len(tensor.shape) != 3 or tensor.shape[1] not in strides:
            return []
        pairs.setdefault(strides[tensor.shape[1]], []).append(i)
    widths = {tuple(sorted(spec.outputs[i].shape[2] for i in pair)) for pair in pairs.values()}
    if len(pairs) < 2 or len(widths) != 1 or any(len(pair) != 2 for pair in pairs.values()):
        return []
    (both,) = widths
    # Which of the two are the classes: as declared, otherwise by the names, otherwise by distributions of known
    # lengths.
    named = classes or len(spec.labels)
    fits = [
        (c, d)
        for c, d in (both, both[::-1])
        if d % 4 == 0 and d >= 8 and (c == named if named else d // 4 in STEPS and c == len(COCO80))
    ]
    if both[0] == both[1] or len(fits) != 1:
        return []
    ((width, _),) = fits
    found = []
    for stride, pair in sorted(pairs.items()):
        first, second = pair
        of_classes = spec.outputs[first].shape[2] == width
        found.append(_Level(stride, *((first, second) if of_classes else (second, first))))
    return found


class Picodet(Head):
    """See the module."""

    def __init__(self, settings: PicodetSettings, spec: ModelSpec, options: DecodeOptions) -> None:
        self._levels = _levels(spec, settings.classes)
        if not self._levels:
            raise ConfigError(
                "model.head: picodet expects, for two strides or more, one output of shape (B, N, C) and one of "
                f"(B, N, 4·R), with C the number of class names or model.head.classes; {spec.path} has {listed(spec)} "
                f"at input {spec.input_height}×{spec.input_width}"
            )
        self._options, self._path, self._checked = options, spec.path, False
        self._centres = [
            _centres(v.stride, -(-spec.input_height // v.stride), -(-spec.input_width // v.stride))
            for v in self._levels
        ]
        self.classes = spec.outputs[self._levels[0].classes].shape[2]

    def candidates(self, outputs: Outputs, index: int) -> Candidates:
        """See `Head.candidates`. Only the distances of cells with a class above the threshold are decoded."""
        scores = [as_float32(outputs[v.classes][index]) for v in self._levels]
        if not self._checked:
            check_class_scores(self._path, "picodet", np.concatenate(scores))
            self._checked = True
        boxes, kept = [], []
        for level, centres, score in zip(self._levels, self._centres, scores, strict=True):
            (keep,) = np.nonzero(score.max(axis=1) >= self._options.conf)
            if not len(keep):
                continue
            distances = level.stride * mean_distances(as_float32(outputs[level.distances][index][keep]))
            box = np.empty((len(keep), 4), np.float32)
            box[:, :2] = centres[keep] - distances[:, :2]
            box[:, 2:] = centres[keep] + distances[:, 2:]
            boxes.append(box)
            kept.append(score[keep])
        if not boxes:
            return EMPTY
        return label_boxes(np.concatenate(boxes), np.concatenate(kept), self._options)


def mean_distances(logits: Float32Array) -> Float32Array:
    """(M, 4) distances in cells from (M, 4·R) logits of their distributions."""
    values = logits.reshape(len(logits), 4, -1)
    shares = np.exp(values - values.max(axis=2, keepdims=True))
    shares /= shares.sum(axis=2, keepdims=True)
    mean: Float32Array = shares @ np.arange(values.shape[2], dtype=np.float32)
    return mean


def _centres(stride: int, height: int, width: int) -> Float32Array:
    """(N, 2) centres of a stride's cells in input pixels, line by line."""
    row, column = np.indices((height, width)).reshape(2, -1)
    return ((np.stack([column, row], axis=1) + 0.5) * stride).astype(np.float32)
