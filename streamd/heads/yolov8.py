"""YOLOv8's and YOLO11's output: (B, 4+C, N), centre and size in input pixels, class scores, no objectness."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from streamd.errors import ModelError
from streamd.heads import HEADS, DecodeOptions, Head, HeadSettings
from streamd.heads.coco import COCO80
from streamd.heads.common import EMPTY, NORMALIZED_MAX, as_float32, cells, check_single, corners, label_boxes
from streamd.heads.validate import check_numbers, largest_finite, mostly_outside_unit, span
from streamd.types import Candidates, DecodePlan, Float32Array, ModelSpec, Outputs

DISTANCES = 64
"""Number of channels of undecoded boxes: 16 for each side."""


@HEADS.register
class Yolov8Settings(HeadSettings):
    """YOLOv8's and YOLO11's output, (B, 4+C, N): cx, cy, w, h in input pixels, scores from 0 to 1, no objectness."""

    kind: Literal["yolov8"] = "yolov8"
    form: ClassVar[str] = "(B, 4+C, N)"
    sigmoid_contradicts: ClassVar[str] = (
        ", but yolov8 expects boxes in input pixels; export the model without it, or declare another head"
    )

    @classmethod
    def shapes(cls, height: int, width: int, classes: int) -> tuple[tuple[int, ...], ...]:
        """See `HeadSettings.shapes`."""
        return ((1, 4 + classes, cells(height, width)),)

    @classmethod
    def recognise(cls, spec: ModelSpec) -> HeadSettings | None:
        """See `HeadSettings.recognise`."""
        shapes = [t.shape for t in spec.outputs]
        fits = len(shapes) == 1 and len(shapes[0]) == 3 and shapes[0][1] >= 5
        return cls() if fits and shapes[0][2] == cells(spec.input_height, spec.input_width) else None

    @classmethod
    def undecodable(cls, spec: ModelSpec) -> str:
        """See `HeadSettings.undecodable`."""
        shapes = [t.shape for t in spec.outputs]
        channels = DISTANCES + (len(spec.labels) or len(COCO80))
        if shapes and all(len(s) == 4 and s[1] == channels for s in shapes):
            return (
                f"are YOLOv8's before their decoding ({DISTANCES} channels of distances, then classes), which no head "
                "here decodes; export it with decoding, or declare model.head.kind: yolov5_heads"
            )
        named = len(spec.labels) or len(COCO80)
        if len(shapes) == 1 and shapes[0][1:] == (cells(spec.input_height, spec.input_width), 4 + named):
            return "are YOLOv8's, transposed; export it as (B, 4+C, N), as its own exporter does"
        return ""

    def open(self, spec: ModelSpec, options: DecodeOptions) -> Head:
        """See `HeadSettings.open`."""
        return Yolov8(spec, options)


class Yolov8(Head):
    """See the module."""

    def __init__(self, spec: ModelSpec, options: DecodeOptions) -> None:
        shape = check_single("yolov8", "(B, 4+C, N)", spec, lambda shape: shape[1] >= 5)
        self._options, self._path, self._checked = options, spec.path, False
        self.classes = shape[1] - 4
        self.plan = DecodePlan("class_columns", self.classes, *options)

    def _check(self, columns: Float32Array) -> None:
        """By shape, other exports of the family look like models with more classes; the first frame's values tell."""
        check_numbers(self._path, columns[:4], columns[4:])
        if mostly_outside_unit(columns[4:].T):
            raise ModelError(
                f"model {self._path}: its output has the shape of yolov8, but what should be class scores is "
                f"{span(columns[4:])}, not 0 to 1. Exports for pose, segmentation and oriented boxes have such values "
                "behind the classes: export the model for detection (task=detect). Logits: export it with its sigmoid"
            )
        boxes = columns[:4]
        largest = largest_finite(boxes)
        if 0 < largest <= NORMALIZED_MAX:
            raise ModelError(
                f"model {self._path}: its output has the shape of yolov8, but in a whole frame no box value exceeds "
                f"{largest:.3g}, where input pixels are expected: its boxes are normalised to 0..1. Export it with "
                "boxes in pixels"
            )
        self._checked = largest > 0

    def candidates(self, outputs: Outputs, index: int) -> Candidates:
        """See `Head.candidates`."""
        columns = as_float32(outputs[0][index])
        if not self._checked:
            self._check(columns)
        (keep,) = np.nonzero(columns[4:].max(axis=0) >= self._options.conf)
        if not len(keep):
            return EMPTY
        values = columns[:, keep]
        return label_boxes(
            corners(values[0], values[1], values[2], values[3]),
            np.ascontiguousarray(values[4:].T),
            self._options,
        )
