"""Outputs with NMS inside: (B, N, 6), x1 y1 x2 y2 score class, in input pixels (YOLOv10, YOLO26, exports with NMS)."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import structlog

from streamd.errors import ModelError
from streamd.heads import HEADS, DecodeOptions, Head, HeadSettings
from streamd.heads.common import EMPTY, NORMALIZED_MAX, as_float32, check_single
from streamd.heads.validate import ROUNDING, largest_finite, mostly_outside_unit, span
from streamd.types import Candidates, DecodePlan, Float32Array, ModelSpec, Outputs

log = structlog.get_logger(__name__)

MOST_CLASSES = 1 << 20
"""A number beyond this is padding, or none."""
MOST_ROWS = 1000
"""With more rows, they are undecoded cells, not the boxes kept by NMS."""


def detected(rows: Float32Array, conf: float, classes: int) -> Float32Array:
    """The rows (M, 6 or more: box, score, class number, …) with a score of at least `conf` and a known class."""
    kept: Float32Array = rows[(rows[:, 4] >= conf) & (rows[:, 5] >= 0) & (rows[:, 5] < classes)]
    return kept


@HEADS.register
class EndToEndSettings(HeadSettings):
    """Output after NMS, (B, N, 6): x1, y1, x2, y2 in input pixels, score and class number."""

    kind: Literal["end_to_end"] = "end_to_end"
    form: ClassVar[str] = "(B, N, 6)"
    sigmoid_contradicts: ClassVar[str] = (
        ", but end_to_end expects boxes in input pixels and class numbers; export the model without it, or declare "
        "another head"
    )

    @classmethod
    def shapes(cls, height: int, width: int, classes: int) -> tuple[tuple[int, ...], ...]:
        """See `HeadSettings.shapes`."""
        return ((1, 300, 6),)

    @classmethod
    def recognise(cls, spec: ModelSpec) -> HeadSettings | None:
        """See `HeadSettings.recognise`."""
        shapes = [t.shape for t in spec.outputs]
        fits = len(shapes) == 1 and len(shapes[0]) == 3 and shapes[0][2] == 6 and 1 <= shapes[0][1] <= MOST_ROWS
        # RT-DETR's rows look the same, but are centre and size as fractions of the input.
        return cls() if fits and spec.metadata.get("head") != "RTDETRDecoder" else None

    def open(self, spec: ModelSpec, options: DecodeOptions) -> Head:
        """See `HeadSettings.open`."""
        return EndToEnd(spec, options)


class EndToEnd(Head):
    """See the module. The number of classes is not in the shape: it is that of the labels."""

    nms = False

    def __init__(self, spec: ModelSpec, options: DecodeOptions) -> None:
        check_single("end_to_end", "(B, N, 6)", spec, lambda shape: shape[2] == 6)
        self._conf, self._path, self._checked, self._named = options.conf, spec.path, False, True
        self.classes = len(spec.labels) or 80
        self.plan = DecodePlan("final_boxes", self.classes, *options)

    def _check(self, rows: Float32Array) -> None:
        """Checks the rows of the first frame that has any above the threshold."""
        boxes = rows[:, :4]
        largest = largest_finite(boxes)
        if 0 < largest <= NORMALIZED_MAX:
            raise ModelError(
                f"model {self._path}: its output has the shape of end_to_end, but no corner exceeds {largest:.3g}, "
                "where input pixels are expected: its boxes are normalised to 0..1. Export it with boxes in pixels; "
                "if it is RT-DETR by Ultralytics, declare model.head.kind: rtdetr"
            )
        if mostly_outside_unit(rows[:, 4:5]):
            raise ModelError(
                f"model {self._path}: its output has the shape of end_to_end, but what should be scores is "
                f"{span(rows[:, 4])}, not 0 to 1: its rows are not x1 y1 x2 y2 score class"
            )
        numbers = rows[:, 5]
        if np.mean(np.abs(numbers - np.rint(numbers)) > ROUNDING) > 0.5:
            raise ModelError(
                f"model {self._path}: its output has the shape of end_to_end, but what should be class numbers is "
                f"{span(numbers)}: its rows are not x1 y1 x2 y2 score class"
            )
        self._checked = True

    def _unnamed(self, rows: Float32Array) -> None:
        """Says once which class has no label: its boxes are left out."""
        self._named = False
        log.warning(
            "boxes of a class without a label are left out; give model.labels for all classes", model=self._path,
            class_id=int(rows[:, 5].max()), labels=self.classes,
        )  # fmt: skip

    def candidates(self, outputs: Outputs, index: int) -> Candidates:
        """See `Head.candidates`. A class below 0 is padding; one beyond the labels is left out."""
        values = detected(as_float32(outputs[0][index]), self._conf, MOST_CLASSES)
        if not len(values):
            return EMPTY
        if not self._checked:
            self._check(values)
        if not (known := values[:, 5] < self.classes).all():
            if self._named:
                self._unnamed(values)
            values = values[known]
        return Candidates(
            np.ascontiguousarray(values[:, :4]), np.ascontiguousarray(values[:, 4]), values[:, 5].astype(np.int32)
        )
