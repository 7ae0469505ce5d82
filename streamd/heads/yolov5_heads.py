"""YOLOv5's raw heads: logits of x, y, w, h, objectness, classes, one output per stride, any number of strides.

The form is (B, A, H, W, 5+C), or (B, A·(5+C), H, W) straight from the last convolution: channel anchor·(5+C)+k.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from streamd.errors import ConfigError, ModelError
from streamd.heads import HEADS, DecodeOptions, Head, HeadSettings
from streamd.heads.anchors import COCO_COUNT, Rows, check_row, coco_anchors, decode, origins
from streamd.heads.common import EMPTY, STRIDES, as_float32, listed, logit, sigmoid
from streamd.heads.validate import check_numbers
from streamd.types import Candidates, DecodePlan, FloatArray, ModelSpec, Outputs

LEAST_VALUES = 6
"""Fewest values of a cell: box, objectness, one class."""


@HEADS.register
class Yolov5HeadsSettings(HeadSettings):
    """YOLOv5's raw heads (logits): an output (B, A, H, W, 5+C) per stride, or (B, A·(5+C), H, W) straight from the
    convolution.

    For the latter, the anchors determine A.
    """

    kind: Literal["yolov5_heads"] = "yolov5_heads"
    anchors: Rows | None = Field(
        None,
        description="Anchors w,h,w,h,… in input pixels, one row per head, finest first. Default: YOLOv5's for COCO.",
    )
    strides: tuple[int, ...] | None = Field(None, description="Stride of each head. Default: from the shapes.")
    form: ClassVar[str] = "(B, A, H, W, 5+C) or (B, A·(5+C), H, W) per stride"
    sigmoid_contradicts: ClassVar[str] = ", but yolov5_heads expects logits; export it without the sigmoid"

    @classmethod
    def shapes(cls, height: int, width: int, classes: int) -> tuple[tuple[int, ...], ...]:
        """See `HeadSettings.shapes`."""
        return tuple((1, COCO_COUNT, height // s, width // s, 5 + classes) for s in STRIDES)

    @classmethod
    def recognise(cls, spec: ModelSpec) -> HeadSettings | None:
        """See `HeadSettings.recognise`. Outputs straight from the convolution need YOLOv5's 3 anchors per stride;
        others must be declared."""
        grids = [(spec.input_height / s, spec.input_width / s) for s in STRIDES]

        def convolved(shape: tuple[int, ...]) -> bool:
            channels = shape[1] if len(shape) == 4 and shape[2:] in grids else 0
            return channels % COCO_COUNT == 0 and channels >= COCO_COUNT * LEAST_VALUES

        shapes = [t.shape for t in spec.outputs]
        return cls() if shapes and all(len(s) == 5 or convolved(s) for s in shapes) else None

    def open(self, spec: ModelSpec, options: DecodeOptions) -> Head:
        """See `HeadSettings.open`."""
        return Yolov5Heads(self, spec, options)


class Yolov5Heads(Head):
    """See the module."""

    def __init__(self, settings: Yolov5HeadsSettings, spec: ModelSpec, options: DecodeOptions) -> None:
        shapes = [t.shape for t in spec.outputs]
        if not shapes or any(
            len(s) not in (4, 5) or min(s[1:]) < 1 or s[-1 if len(s) == 5 else 1] < LEAST_VALUES for s in shapes
        ):
            raise ConfigError(
                "model.head: yolov5_heads expects outputs of shape (B, A, H, W, 5+C) or (B, A·(5+C), H, W); "
                f"{spec.path} has {listed(spec)}"
            )
        # The finest first, whatever order the exporter chose: settings list strides and anchors in that order. Rows and
        # columns are dimensions 2 and 3 of both forms.
        self._order = sorted(range(len(shapes)), key=lambda i: -shapes[i][2])
        grids = [shapes[i] for i in self._order]
        strides = settings.strides or tuple(spec.input_height // g[2] for g in grids)
        if len(strides) != len(grids):
            raise ConfigError(f"model.head.strides: {len(strides)} given, but {spec.path} has {len(grids)} heads")
        for stride, grid in zip(strides, grids, strict=True):
            if (grid[2] * stride, grid[3] * stride) != (spec.input_height, spec.input_width):
                raise ConfigError(
                    f"model.head.strides: stride {stride} on a {grid[2]}×{grid[3]} grid does not make the input of "
                    f"{spec.input_height}×{spec.input_width}"
                )
        anchors = _anchors(settings, spec, strides, grids)
        # Channels per anchor of each head: 5+C, which must be the same for all.
        depths = [Fraction(g[1], len(row) // 2) if len(g) == 4 else g[4] for g, row in zip(grids, anchors, strict=True)]
        if len(set(depths)) > 1 or depths[0].denominator > 1 or depths[0] < LEAST_VALUES:
            raise ConfigError(
                f"model.head: yolov5_heads with {[len(row) // 2 for row in anchors]} anchors expects that many times "
                f"5+C channels, the same C in each head; {spec.path} has {listed(spec)}"
            )
        self._options, self._path, self._checked = options, spec.path, False
        self._logit = np.float32(logit(options.conf))
        self._strides = strides
        self._anchors = [np.array(row, np.float32).reshape(-1, 2) for row in anchors]
        by_output = sorted(range(len(self._order)), key=lambda k: self._order[k])
        self.classes = int(depths[0]) - 5
        self.plan = DecodePlan(
            "anchor_grids", self.classes, *options, tuple(strides[k] for k in by_output),
            tuple(tuple(anchors[k]) for k in by_output),
        )  # fmt: skip

    def _check(self, heads: Sequence[FloatArray]) -> None:
        """Some exporters end in a sigmoid. In a whole frame, most objectness logits are negative."""
        values = [head[..., 4] for head in heads]
        check_numbers(self._path, *values)
        least, most = min(float(v.min()) for v in values), max(float(v.max()) for v in values)
        if 0 <= least < most <= 1:
            raise ModelError(
                f"model {self._path}: its outputs have the shape of yolov5_heads, but in a whole frame objectness is "
                f"{least:.3g} to {most:.3g}, where logits are expected: they end in a sigmoid. Export the model "
                "without it"
            )
        self._checked = True

    def candidates(self, outputs: Outputs, index: int) -> Candidates:
        """See `Head.candidates`. Objectness is an upper bound of the score, so its logit is compared first."""
        heads = [
            by_cell(outputs[position][index], len(anchors))
            for position, anchors in zip(self._order, self._anchors, strict=True)
        ]
        if not self._checked:
            self._check(heads)
        found: list[tuple[FloatArray, ...]] = []
        for head, stride, anchors in zip(heads, self._strides, self._anchors, strict=True):
            anchor, row, column = np.nonzero(as_float32(head[..., 4]) >= self._logit)
            if len(anchor):
                values = as_float32(head[anchor, row, column])
                found.append((values, origins(column, row), np.full(len(anchor), stride, np.float32), anchors[anchor]))
        if not found:
            return EMPTY
        shares, origins_, strides, sizes = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return decode(sigmoid(shares), origins_, strides, sizes, self._options)


def _anchors(
    settings: Yolov5HeadsSettings, spec: ModelSpec, strides: Sequence[int], grids: Sequence[tuple[int, ...]]
) -> Rows:
    """One row of anchors per head: from the settings, or YOLOv5's own for its strides."""
    anchors = settings.anchors
    if anchors is None:
        # Channels do not tell the number of anchors; YOLOv5 has 3.
        counts = [g[1] if len(g) == 5 else COCO_COUNT for g in grids]
        known = coco_anchors(strides)
        if known is None or any(n != COCO_COUNT for n in counts):
            raise ConfigError(
                f"model.head.anchors: must be given for strides {list(strides)} with "
                f"{counts} anchors each; only YOLOv5's own (8, 16, 32 with 3 each) are known"
            )
        return known
    if len(anchors) != len(grids):
        raise ConfigError(f"model.head.anchors: {len(anchors)} rows given, but {spec.path} has {len(grids)} heads")
    for row, grid in zip(anchors, grids, strict=True):
        check_row(row, grid[1] if len(grid) == 5 else None)
    return anchors


def by_cell(head: FloatArray, anchors: int) -> FloatArray:
    """One frame's head as (A, H, W, 5+C), from either form; never a copy."""
    return head if head.ndim == 4 else head.reshape(anchors, -1, *head.shape[1:]).transpose(0, 2, 3, 1)
