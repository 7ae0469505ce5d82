"""A head for YOLOv8's output with rows and columns exchanged: (B, N, 4+C), as some exporters write it."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from streamd.heads import DecodeOptions, Head, HeadSettings
from streamd.heads.common import EMPTY, as_float32, check_single, corners, label_boxes
from streamd.types import Candidates, ModelSpec, Outputs


class Yolov8RowsSettings(HeadSettings):
    """YOLOv8's output transposed: (B, N, 4+C), cx cy w h classes, in input pixels and 0..1."""

    kind: Literal["yolov8_rows"] = "yolov8_rows"
    form: ClassVar[str] = "(B, N, 4+C)"

    def open(self, spec: ModelSpec, options: DecodeOptions) -> Head:
        """See `HeadSettings.open`."""
        return Yolov8Rows(spec, options)


class Yolov8Rows(Head):
    """See the module. It has no plan for a device, so that boxes are decoded on the host."""

    def __init__(self, spec: ModelSpec, options: DecodeOptions) -> None:
        shape = check_single("yolov8_rows", "(B, N, 4+C)", spec, lambda shape: shape[2] >= 5)
        self._options = options
        self.classes = shape[2] - 4

    def candidates(self, outputs: Outputs, index: int) -> Candidates:
        """See `Head.candidates`."""
        rows = as_float32(outputs[0][index])
        (keep,) = np.nonzero(rows[:, 4:].max(axis=1) >= self._options.conf)
        if not len(keep):
            return EMPTY
        values = rows[keep]
        return label_boxes(
            corners(values[:, 0], values[:, 1], values[:, 2], values[:, 3]),
            np.ascontiguousarray(values[:, 4:]),
            self._options,
        )
