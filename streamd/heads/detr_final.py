"""RT-DETR, D-FINE and DEIM with their post-processing: labels (B, N), boxes (B, N, 4), scores (B, N).

Their repositories' `export_onnx.py` writes them so, with a second input `orig_target_sizes` by which boxes are scaled.
The engine sets it to the size of the network's input (`engine.model.SIZE_INPUTS`), so that boxes are corners in input
pixels. The rows are the N best of all queries and classes: one query may appear with several classes.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np

from streamd.errors import ConfigError, ModelError
from streamd.heads import HEADS, DecodeOptions, Head, HeadSettings
from streamd.heads.coco import COCO80
from streamd.heads.common import EMPTY, NORMALIZED_MAX, as_float32, listed
from streamd.heads.queries import FAMILY_INPUT
from streamd.heads.validate import check_numbers, largest_finite, mostly_outside_unit, span
from streamd.types import Candidates, Float32Array, ModelSpec, Outputs

NAMES = ("labels", "boxes", "scores")
"""The exporters' names of the outputs. Labels and scores have the same shape, so only names tell them apart."""


@HEADS.register
class DetrFinalSettings(HeadSettings):
    """RT-DETR, D-FINE and DEIM with post-processing: labels (B, N), boxes (B, N, 4) and scores (B, N)."""

    kind: Literal["detr_final"] = "detr_final"
    form: ClassVar[str] = "labels (B, N), boxes (B, N, 4), scores (B, N)"
    usual_input: ClassVar[dict[str, Any]] = FAMILY_INPUT

    @classmethod
    def recognise(cls, spec: ModelSpec) -> HeadSettings | None:
        """See `HeadSettings.recognise`."""
        return cls() if _order(spec) else None

    def open(self, spec: ModelSpec, options: DecodeOptions) -> Head:
        """See `HeadSettings.open`."""
        return DetrFinal(spec, options)


def _order(spec: ModelSpec) -> tuple[int, int, int] | None:
    """Which outputs are labels, boxes and scores; None if they are something else."""
    names = [t.name for t in spec.outputs]
    if sorted(names) != sorted(NAMES):
        return None
    labels, boxes, scores = (names.index(name) for name in NAMES)
    rows = spec.outputs[boxes].shape[:2]
    fits = len(spec.outputs[boxes].shape) == 3 and spec.outputs[boxes].shape[2] == 4
    fits = fits and all(spec.outputs[i].shape == rows for i in (labels, scores))
    return (labels, boxes, scores) if fits else None


class DetrFinal(Head):
    """See the module. The number of classes is not in the shapes: it is that of the labels."""

    nms = False

    def __init__(self, spec: ModelSpec, options: DecodeOptions) -> None:
        order = _order(spec)
        if order is None:
            raise ConfigError(
                "model.head: detr_final expects three outputs named labels (B, N), boxes (B, N, 4) and scores (B, N); "
                f"{spec.path} has {listed(spec)}"
            )
        self._labels, self._boxes, self._scores = order
        self._options, self._path, self._checked = options, spec.path, False
        self.classes = len(spec.labels) or len(COCO80)

    def _check(self, boxes: Float32Array, scores: Float32Array) -> None:
        check_numbers(self._path, boxes, scores)
        if mostly_outside_unit(scores[:, None]):
            raise ModelError(f"model {self._path}: what detr_final reads as scores is {span(scores)}, not 0 to 1")
        largest = largest_finite(boxes)
        if 0 < largest <= NORMALIZED_MAX:
            raise ModelError(
                f"model {self._path}: detr_final expects corners in pixels, but none exceeds {largest:.3g}: boxes are "
                "fractions of the input. Export the model without post-processing (logits and boxes: detr)"
            )
        self._checked = largest > 0

    def candidates(self, outputs: Outputs, index: int) -> Candidates:
        """See `Head.candidates`. For a query with several classes, only the best one, unless multi_label is set."""
        scores, boxes = as_float32(outputs[self._scores][index]), as_float32(outputs[self._boxes][index])
        labels = outputs[self._labels][index]
        if not self._checked:
            self._check(boxes, scores)
        (keep,) = np.nonzero((scores >= self._options.conf) & (labels >= 0) & (labels < self.classes))
        if not len(keep):
            return EMPTY
        if not self._options.multi_label and len(keep) > 1:
            # All classes of one query have the identical box. They come best first, and a stable sort keeps that order.
            keep = keep[np.argsort(-scores[keep], kind="stable")]
            first = np.unique(boxes[keep], axis=0, return_index=True)[1]
            keep = keep[np.sort(first)]
        return Candidates(boxes[keep], scores[keep], labels[keep].astype(np.int32))
