"""YOLOv5's decoded output: (B, N, 5+C), centre and size in input pixels, objectness, classes."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from streamd.errors import ModelError
from streamd.heads import HEADS, DecodeOptions, Head, HeadSettings
from streamd.heads.anchors import COCO_COUNT
from streamd.heads.common import NORMALIZED_MAX, RowsHead, cells, check_single, corners, label_boxes
from streamd.heads.validate import check_numbers, mostly_outside_unit, span
from streamd.types import Candidates, DecodePlan, Float32Array, ModelSpec


@HEADS.register
class Yolov5CatSettings(HeadSettings):
    """YOLOv5's decoded output, (B, N, 5+C): cx, cy, w, h in input pixels, objectness and class scores from 0 to 1."""

    kind: Literal["yolov5_cat"] = "yolov5_cat"
    form: ClassVar[str] = "(B, N, 5+C)"
    sigmoid_contradicts: ClassVar[str] = (
        ", so its rows are not decoded: boxes are relative to cells and anchors, although the shape is that of "
        "yolov5_cat; for a YOLOv5 model, declare --head yolov5_sigmoid, or model.head.kind in the configuration"
    )

    @classmethod
    def shapes(cls, height: int, width: int, classes: int) -> tuple[tuple[int, ...], ...]:
        """See `HeadSettings.shapes`."""
        return ((1, COCO_COUNT * cells(height, width), 5 + classes),)

    @classmethod
    def recognise(cls, spec: ModelSpec) -> HeadSettings | None:
        """See `HeadSettings.recognise`."""
        shapes = [t.shape for t in spec.outputs]
        fits = len(shapes) == 1 and len(shapes[0]) == 3 and shapes[0][2] >= 6
        return cls() if fits and shapes[0][1] == COCO_COUNT * cells(spec.input_height, spec.input_width) else None

    def open(self, spec: ModelSpec, options: DecodeOptions) -> Head:
        """See `HeadSettings.open`."""
        return Yolov5Cat(spec, options)


class Yolov5Cat(RowsHead):
    """See the module."""

    def __init__(self, spec: ModelSpec, options: DecodeOptions) -> None:
        shape = check_single("yolov5_cat", "(B, N, 5+C)", spec, lambda shape: shape[2] >= 6)
        super().__init__(options)
        self._path = spec.path
        self.classes = shape[2] - 5
        self.plan = DecodePlan("objectness_rows", self.classes, *options)

    def check(self, rows: Float32Array) -> None:
        """Shapes cannot tell decoded rows from undecoded ones; the first frame's values can."""
        check_numbers(self._path, rows[:, :4], rows[:, 4:])
        if len(rows) and (largest := float(rows[:, :4].max())) <= NORMALIZED_MAX:
            raise ModelError(
                f"model {self._path}: its output has the shape of yolov5_cat, but in a whole frame no box value "
                f"exceeds {largest:.3g}, where input pixels are expected: it is not decoded. If it ends in YOLOv5's "
                "sigmoid, declare model.head.kind: yolov5_sigmoid (on the command line --head yolov5_sigmoid; in the "
                f'sidecar {self._path}.json: {{"version":1,"head":{{"kind":"yolov5_sigmoid"}}}})'
            )
        if mostly_outside_unit(rows[:, 4:]):
            raise ModelError(
                f"model {self._path}: its output has the shape of yolov5_cat, but objectness and classes are "
                f"{span(rows[:, 4:])}, not 0 to 1: export the model with its sigmoid, for detection"
            )

    def decode(self, rows: Float32Array, index: npt.NDArray[np.intp]) -> Candidates:
        """See `RowsHead.decode`."""
        return label_boxes(
            corners(rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3]),
            rows[:, 5:] * rows[:, 4:5],
            self._options,
        )
