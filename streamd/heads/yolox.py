"""YOLOX's output: (B, N, 5+C), one row per cell, stride by stride: box, objectness, classes.

As the repository exports it, the box is not decoded: xy = (v + cell) · stride, wh = e^v · stride (YOLOX 0.3,
`YOLOXHead.decode_outputs`); with `--decode_in_inference` it is. Objectness and classes are after the sigmoid in both.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from streamd.errors import ConfigError, ModelError
from streamd.heads import HEADS, DecodeOptions, Head, HeadSettings
from streamd.heads.coco import COCO80
from streamd.heads.common import STRIDES, RowsHead, cells, check_single, corners, label_boxes, listed
from streamd.heads.validate import check_numbers, largest_finite, mostly_outside_unit, span
from streamd.types import Candidates, DecodePlan, Float32Array, ModelSpec


@HEADS.register
class YoloxSettings(HeadSettings):
    """YOLOX's output, (B, N, 5+C), a row per cell, stride by stride: box, objectness and class scores from 0 to 1.

    Cells are in reading order.
    """

    kind: Literal["yolox"] = "yolox"
    decoded: bool = Field(
        False,
        description="Boxes are in input pixels (exported with --decode_in_inference), not relative to their cells.",
    )
    strides: tuple[int, ...] = Field(
        STRIDES, min_length=1, description="Strides, in the order of the rows: 8, 16, 32, and 64 for P6 models."
    )
    form: ClassVar[str] = "(B, N, 5+C)"
    sigmoid_contradicts: ClassVar[str] = (
        ", but yolox expects boxes that are not shares of 1; export the model without it, or declare another head"
    )
    usual_input: ClassVar[dict[str, Any]] = {"color": "BGR", "scale": 1, "align": "top_left"}

    @classmethod
    def shapes(cls, height: int, width: int, classes: int) -> tuple[tuple[int, ...], ...]:
        """See `HeadSettings.shapes`."""
        return ((1, cells(height, width), 5 + classes),)

    @classmethod
    def recognise(cls, spec: ModelSpec) -> HeadSettings | None:
        """See `HeadSettings.recognise`. YOLOv8's transposed output has the same form with one value less per row."""
        shapes = [t.shape for t in spec.outputs]
        rows, columns = shapes[0][1:] if len(shapes) == 1 and len(shapes[0]) == 3 else (0, 0)
        fits = rows == cells(spec.input_height, spec.input_width) and columns == 5 + (len(spec.labels) or len(COCO80))
        return cls() if fits else None

    @classmethod
    def undecodable(cls, spec: ModelSpec) -> str:
        """See `HeadSettings.undecodable`."""
        shapes = [t.shape for t in spec.outputs]
        rows, columns = shapes[0][1:] if len(shapes) == 1 and len(shapes[0]) == 3 else (0, 0)
        if rows != cells(spec.input_height, spec.input_width) or columns < 6 or spec.labels:
            return ""
        if columns in (4 + len(COCO80), 5 + len(COCO80)):
            return ""
        return (
            f"are rows of an anchor-free grid: YOLOX's with {columns - 5} classes, or YOLOv8's, transposed, with "
            f"{columns - 4}; name the classes (model.labels), or declare model.head.kind: yolox"
        )

    def open(self, spec: ModelSpec, options: DecodeOptions) -> Head:
        """See `HeadSettings.open`."""
        return Yolox(self, spec, options)


class Yolox(RowsHead):
    """See the module."""

    def __init__(self, settings: YoloxSettings, spec: ModelSpec, options: DecodeOptions) -> None:
        shape = check_single("yolox", "(B, N, 5+C)", spec, lambda shape: shape[2] >= 6)
        height, width = spec.input_height, spec.input_width
        if any(s < 1 or height % s or width % s for s in settings.strides):
            raise ConfigError(
                f"model.head.strides: {list(settings.strides)} do not divide the input of {height}×{width}"
            )
        tables = [_grid(s, height // s, width // s) for s in settings.strides]
        self._cell, self._stride = (np.concatenate(t) for t in zip(*tables, strict=True))
        if shape[1] != len(self._stride):
            raise ConfigError(
                f"model.head: strides {list(settings.strides)} make {len(self._stride)} rows at input "
                f"{height}×{width}; {spec.path} has {listed(spec)}"
            )
        super().__init__(options)
        self._path = spec.path
        self._decoded = settings.decoded
        self._least_reach = min(height, width) / 2
        self.classes = shape[2] - 5
        if settings.decoded:
            self.plan = DecodePlan("objectness_rows", self.classes, *options)

    def check(self, rows: Float32Array) -> None:
        """Shapes tell neither decoded boxes from others nor YOLOX from similar models; the first frame's values do."""
        check_numbers(self._path, rows[:, :4], rows[:, 4:])
        if mostly_outside_unit(rows[:, 4:]):
            raise ModelError(
                f"model {self._path}: declared or recognised as yolox, but objectness and classes are "
                f"{span(rows[:, 4:])}, not 0 to 1. Export the model with its sigmoid; if this is YOLOv8's output "
                "transposed, export it as (B, 4+C, N)"
            )
        # Relative to its cell, a centre is at most a few cells away; in pixels, centres of a whole frame are
        # everywhere.
        centres = np.abs(rows[:, :2])
        reach = largest_finite(centres)
        if self._decoded != (reach > self._least_reach):
            found, fits = ("in pixels", "true") if reach > self._least_reach else ("relative to cells", "false")
            raise ModelError(
                f"model {self._path}: a whole frame's box centres reach {reach:.3g}, so they are {found}: declare "
                f"model.head: {{kind: yolox, decoded: {fits}}}, or the same in the sidecar's head"
            )

    def decode(self, rows: Float32Array, index: npt.NDArray[np.intp]) -> Candidates:
        """See `RowsHead.decode`."""
        centre, size = rows[:, :2], rows[:, 2:4]
        if not self._decoded:
            stride = self._stride[index, None]
            centre = (centre + self._cell[index]) * stride
            with np.errstate(over="ignore"):
                size = np.exp(size) * stride
        return label_boxes(
            corners(centre[:, 0], centre[:, 1], size[:, 0], size[:, 1]), rows[:, 5:] * rows[:, 4:5], self._options
        )


def _grid(stride: int, height: int, width: int) -> tuple[Float32Array, Float32Array]:
    """Of each row of one stride: column and row of its cell (N, 2), stride (N,)."""
    row, column = np.indices((height, width)).reshape(2, -1)
    return np.stack([column, row], axis=1).astype(np.float32), np.full(len(row), stride, np.float32)
