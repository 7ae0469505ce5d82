"""What a model takes and gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from streamd.types.detections import ModelInfo
from streamd.types.pictures import CENTERED, Float32Array, FloatArray, Placement

ElementType = Literal["float32", "float16", "uint8", "int8"]


@dataclass(slots=True, frozen=True)
class TensorSpec:
    """A named tensor. A dimension of -1 is dynamic."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(slots=True, frozen=True)
class ModelSpec:
    """What a model is and how its input is made. Read from the model and its sidecar, checked at open."""

    path: str
    sha256: str
    name: str
    input: TensorSpec
    """NCHW (or NHWC: see `layout`), the batch first."""
    outputs: tuple[TensorSpec, ...]
    labels: tuple[str, ...]
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    color: Literal["RGB", "BGR"] = "RGB"
    scale: float = 1 / 255
    """Pixels 0..255 are multiplied by this."""
    mean: tuple[float, float, float] | None = None
    """For each channel, in the order of `color`: subtracted after `scale`."""
    std: tuple[float, float, float] | None = None
    """For each channel: the result is divided by it."""
    pad_value: int = 114
    """Grey level 0..255 around the letterboxed picture."""
    placement: Placement = CENTERED
    input_declared: bool = True
    """False if neither configuration nor sidecar declares how the input is made, and the defaults above are used."""
    max_batch: int = 1
    metadata: Mapping[str, str] = field(default_factory=dict)
    """The model's own metadata, verbatim (ONNX metadata_props)."""
    head: Mapping[str, object] | None = None
    """The head as the sidecar declares it, in the form of the configuration's `model.head`."""

    @property
    def input_width(self) -> int:
        """Pixels."""
        return self.input.shape[3 if self.layout == "NCHW" else 2]

    @property
    def input_height(self) -> int:
        """Pixels."""
        return self.input.shape[2 if self.layout == "NCHW" else 1]

    def normalization(self) -> tuple[Float32Array, Float32Array]:
        """(3,) gain and (3,) offset: an input channel is `pixel * gain + offset`, of pixels 0..255."""
        mean = np.zeros(3) if self.mean is None else np.array(self.mean)
        std = np.ones(3) if self.std is None else np.array(self.std)
        return (self.scale / std).astype(np.float32), (-mean / std).astype(np.float32)

    def info(self) -> ModelInfo:
        """The part of the specification that every message includes."""
        return ModelInfo(name=self.name, sha256=self.sha256, labels=self.labels)


DeviceLayout = Literal["anchor_grids", "anchor_rows", "objectness_rows", "class_columns", "final_boxes"]
"""The layout of boxes in a model's outputs, for a device that decodes them itself; several heads may share one.

- anchor_grids: one output per stride, logits relative to cell and anchor: (B, A, H, W, 5+C) or (B, A·(5+C), H, W)
- anchor_rows: the same values after a sigmoid, joined: (B, N, 5+C), stride by stride, anchor by anchor, line by line
- objectness_rows: (B, N, 5+C): cx, cy, w, h in input pixels, objectness, class scores
- class_columns: (B, 4+C, N): cx, cy, w, h in input pixels, class scores
- final_boxes: (B, N, 6): x1, y1, x2, y2 in input pixels, score, class number
"""


@dataclass(slots=True, frozen=True)
class DecodePlan:
    """What a device needs to decode boxes itself. Created by the head; a backend may ignore it."""

    layout: DeviceLayout
    classes: int
    conf: float
    """Lowest score that any class may have; finer thresholds are applied on the host."""
    multi_label: bool
    strides: tuple[int, ...] = ()
    """anchor_grids: one for each output, in `ModelSpec.outputs` order. anchor_rows: in the order of the rows."""
    anchors: tuple[tuple[float, ...], ...] = ()
    """w,h,w,h,… in input pixels, one row per stride in the same order."""
    class_conf: tuple[float, ...] = ()
    """Lowest score of each class, if they differ or some classes are excluded (infinity). For `suppress` only."""
    suppress: bool = False
    """The device may also apply `class_conf` and NMS: all of `heads.postprocess` except the mapping to source
    pixels."""
    iou: float = 0.45
    max_det: int = 300
    agnostic: bool = False


Outputs = Sequence[FloatArray]
"""A batch's raw output arrays, in `ModelSpec.outputs` order, each with the batch as first dimension."""
