"""YOLOv5's raw heads after a sigmoid, joined stride by stride, not decoded: (B, N, 5+C), values 0..1."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from streamd.errors import ConfigError, ModelError
from streamd.heads import HEADS, DecodeOptions, Head, HeadSettings
from streamd.heads.anchors import COCO_ANCHORS, COCO_COUNT, Rows, check_row, coco_anchors, decode, origins
from streamd.heads.common import RowsHead, cells, check_single, listed
from streamd.types import Candidates, DecodePlan, Float32Array, ModelSpec

ROUNDING = 1e-3
"""In reduced precision, a sigmoid may exceed 0..1 by this much."""


@HEADS.register
class Yolov5SigmoidSettings(HeadSettings):
    """YOLOv5's raw heads after a sigmoid, joined but not decoded: (B, N, 5+C), from 0 to 1. Must be declared.

    It has the shape of yolov5_cat. Rows are ordered by stride, then by anchor, then in reading order.
    """

    kind: Literal["yolov5_sigmoid"] = "yolov5_sigmoid"
    strides: tuple[int, ...] | None = Field(None, description="Strides, in the order of the rows. Default: 8, 16, 32.")
    anchors: Rows | None = Field(
        None,
        description="Anchors w,h,w,h,… in input pixels, one row per stride, in that order. Default: YOLOv5's for COCO.",
    )
    form: ClassVar[str] = "(B, N, 5+C)"

    @classmethod
    def shapes(cls, height: int, width: int, classes: int) -> tuple[tuple[int, ...], ...]:
        """See `HeadSettings.shapes`."""
        return ((1, COCO_COUNT * cells(height, width), 5 + classes),)

    def open(self, spec: ModelSpec, options: DecodeOptions) -> Head:
        """See `HeadSettings.open`."""
        return Yolov5Sigmoid(self, spec, options)


class Yolov5Sigmoid(RowsHead):
    """See the module."""

    def __init__(self, settings: Yolov5SigmoidSettings, spec: ModelSpec, options: DecodeOptions) -> None:
        shape = check_single("yolov5_sigmoid", "(B, N, 5+C)", spec, lambda shape: shape[2] >= 6)
        strides = settings.strides or tuple(COCO_ANCHORS)
        height, width = spec.input_height, spec.input_width
        if any(s < 1 or height % s or width % s for s in strides):
            raise ConfigError(f"model.head.strides: {list(strides)} do not divide the input of {height}×{width}")
        anchors = settings.anchors or coco_anchors(strides)
        if anchors is None:
            raise ConfigError(
                f"model.head.anchors: must be given for strides {list(strides)}; only those of 8, 16, 32 are known"
            )
        if len(anchors) != len(strides):
            raise ConfigError(f"model.head.anchors: {len(anchors)} rows given for {len(strides)} strides")
        for row in anchors:
            check_row(row)
        tables = [_grid(s, row, height // s, width // s) for s, row in zip(strides, anchors, strict=True)]
        self._origin, self._stride, self._anchor = (np.concatenate(t) for t in zip(*tables, strict=True))
        if shape[1] != len(self._stride):
            raise ConfigError(
                f"model.head: strides {list(strides)} with {[len(row) // 2 for row in anchors]} anchors make "
                f"{len(self._stride)} rows at input {height}×{width}; {spec.path} has {listed(spec)}"
            )
        super().__init__(options)
        self._path = spec.path
        self.classes = shape[2] - 5
        self.plan = DecodePlan("anchor_rows", self.classes, *options, tuple(strides), tuple(anchors))

    def check(self, rows: Float32Array) -> None:
        least, most = float(rows.min()), float(rows.max())
        if not (least >= -ROUNDING and most <= 1 + ROUNDING):
            raise ModelError(
                f"model {self._path}: declared yolov5_sigmoid, but its output holds values from {least:.3g} to "
                f"{most:.3g}, not 0 to 1: it does not end in a sigmoid. Boxes in input pixels are yolov5_cat: correct "
                "model.head.kind (--head, or the sidecar's head)"
            )

    def decode(self, rows: Float32Array, index: npt.NDArray[np.intp]) -> Candidates:
        """See `RowsHead.decode`."""
        return decode(rows, self._origin[index], self._stride[index], self._anchor[index], self._options)


def _grid(
    stride: int, anchors: tuple[float, ...], height: int, width: int
) -> tuple[Float32Array, Float32Array, Float32Array]:
    """Of each row of one stride: its cell's origin (N, 2), stride (N,), anchor (N, 2)."""
    sizes = np.array(anchors, np.float32).reshape(-1, 2)
    anchor, row, column = np.indices((len(sizes), height, width)).reshape(3, -1)
    return origins(column, row), np.full(len(row), stride, np.float32), sizes[anchor]
