"""YOLOv5's outputs: three (or any number of) raw heads, the same after a sigmoid, and the decoded tensor.

Decoding after the YOLOv5 repository's Detect layer (release 6): xy = (2σ − 0.5 + cell) · stride, wh = (2σ)² · anchor,
score = objectness · class.
"""

from __future__ import annotations

import numpy as np

from streamd.errors import ConfigError, ModelError
from streamd.heads import Yolov5CatSettings, Yolov5HeadsSettings, Yolov5SigmoidSettings
from streamd.heads.common import EMPTY, corners, label_boxes, logit, sigmoid
from streamd.types import Candidates, DecodePlan, Float32Array, ModelSpec, Outputs

COCO_ANCHORS: dict[int, tuple[float, ...]] = {
    8: (10, 13, 16, 30, 33, 23),
    16: (30, 61, 62, 45, 59, 119),
    32: (116, 90, 156, 198, 373, 326),
}
"""Anchor sizes w,h,… in input pixels, by stride: what YOLOv5's P5 models were trained with."""
SHARES_END = 1.5
"""Decoded boxes of a whole frame always go beyond: the centres of the last cells are hundreds of pixels away."""
ROUNDING = 1e-3
"""A sigmoid may come out of a reduced precision so far outside 0..1."""


class Yolov5Heads:
    """One (B, A, H, W, 5+C) output a stride: logits of x, y, w, h, objectness, classes."""

    nms = True

    def __init__(self, settings: Yolov5HeadsSettings, spec: ModelSpec, *, conf: float, multi_label: bool) -> None:
        shapes = [t.shape for t in spec.outputs]
        if any(len(s) != 5 or min(s[1:]) < 1 or s[4] < 6 for s in shapes):
            raise ConfigError(
                f"model.head: yolov5_heads expects outputs of shape (B, A, H, W, 5+C); {spec.path} has "
                + ", ".join(f"{t.name}{list(t.shape)}" for t in spec.outputs)
            )
        # Finest first, whatever order the exporter chose: settings list strides and anchors from the finest.
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
        anchors = settings.anchors
        if anchors is None:
            if any(s not in COCO_ANCHORS for s in strides) or any(g[1] != 3 for g in grids):
                raise ConfigError(
                    f"model.head.anchors: must be given for strides {list(strides)} with "
                    f"{[g[1] for g in grids]} anchors each; only YOLOv5's own (8, 16, 32 with 3 each) are known"
                )
            anchors = tuple(COCO_ANCHORS[s] for s in strides)
        for row, grid in zip(anchors, grids, strict=False):
            if len(row) != 2 * grid[1] or min(row) <= 0:
                raise ConfigError(f"model.head.anchors: a row needs {2 * grid[1]} positive numbers (w,h an anchor)")
        if len(anchors) != len(grids):
            raise ConfigError(f"model.head.anchors: {len(anchors)} rows given, but {spec.path} has {len(grids)} heads")
        self._conf, self._multi_label = conf, multi_label
        self._logit = np.float32(logit(conf))
        self._strides = strides
        self._anchors = [np.array(row, np.float32).reshape(-1, 2) for row in anchors]
        by_output = sorted(range(len(self._order)), key=lambda k: self._order[k])
        self.plan = DecodePlan(
            "yolov5_heads", grids[0][4] - 5, conf, multi_label,
            tuple(strides[k] for k in by_output), tuple(tuple(anchors[k]) for k in by_output),
        )  # fmt: skip

    def candidates(self, outputs: Outputs, index: int) -> Candidates:
        """See `Head.candidates`. Objectness alone bounds the score, so its logit is compared before anything else."""
        found_boxes: list[Float32Array] = []
        found_scores: list[Float32Array] = []
        for position, stride, anchors in zip(self._order, self._strides, self._anchors, strict=True):
            head = outputs[position][index]
            anchor, row, column = np.nonzero(head[..., 4] >= self._logit)
            if not len(anchor):
                continue
            values = sigmoid(head[anchor, row, column])
            size = np.square(values[:, 2:4] * 2) * anchors[anchor]
            cx = (values[:, 0] * 2 - 0.5 + column) * stride
            cy = (values[:, 1] * 2 - 0.5 + row) * stride
            found_boxes.append(corners(cx, cy, size[:, 0], size[:, 1]))
            found_scores.append(values[:, 5:] * values[:, 4:5])
        if not found_boxes:
            return EMPTY
        return label_boxes(
            np.concatenate(found_boxes), np.concatenate(found_scores), self._conf, multi_label=self._multi_label
        )


class Yolov5Cat:
    """One decoded (B, N, 5+C) output: centre, size, objectness, classes."""

    nms = True

    def __init__(self, settings: Yolov5CatSettings, spec: ModelSpec, *, conf: float, multi_label: bool) -> None:
        shape = spec.outputs[0].shape
        if len(spec.outputs) != 1 or len(shape) != 3 or shape[2] < 6:
            raise ConfigError(
                f"model.head: yolov5_cat expects one output of shape (B, N, 5+C); {spec.path} has "
                + ", ".join(f"{t.name}{list(t.shape)}" for t in spec.outputs)
            )
        self._conf, self._multi_label, self._path, self._checked = conf, multi_label, spec.path, False
        self.plan = DecodePlan("yolov5_cat", shape[2] - 5, conf, multi_label)

    def _check(self, rows: Float32Array) -> None:
        """Shapes cannot tell decoded rows from undecoded ones; the first frame's values can."""
        if len(rows) and (largest := float(rows[:, :4].max())) <= SHARES_END:
            raise ModelError(
                f"model {self._path}: its output has the shape of yolov5_cat, but in a whole frame no box value "
                f"exceeds {largest:.3g}, where input pixels are expected: it is not decoded. If it ends in YOLOv5's "
                "sigmoid, declare model.head.kind: yolov5_sigmoid (on the command line --head yolov5_sigmoid; in the "
                f'sidecar {self._path}.json: {{"version":1,"head":{{"kind":"yolov5_sigmoid"}}}})'
            )
        self._checked = True

    def candidates(self, outputs: Outputs, index: int) -> Candidates:
        """See `Head.candidates`."""
        rows = outputs[0][index]
        if not self._checked:
            self._check(rows)
        (keep,) = np.nonzero(rows[:, 4] >= self._conf)
        if not len(keep):
            return EMPTY
        values = rows[keep]
        return label_boxes(
            corners(values[:, 0], values[:, 1], values[:, 2], values[:, 3]),
            values[:, 5:] * values[:, 4:5],
            self._conf,
            multi_label=self._multi_label,
        )


class Yolov5Sigmoid:
    """One (B, N, 5+C) output of shares 0..1: the raw heads' sigmoid, joined stride by stride, not decoded."""

    nms = True

    def __init__(self, settings: Yolov5SigmoidSettings, spec: ModelSpec, *, conf: float, multi_label: bool) -> None:
        shape = spec.outputs[0].shape
        listed = ", ".join(f"{t.name}{list(t.shape)}" for t in spec.outputs)
        if len(spec.outputs) != 1 or len(shape) != 3 or shape[2] < 6:
            raise ConfigError(
                f"model.head: yolov5_sigmoid expects one output of shape (B, N, 5+C); {spec.path} has {listed}"
            )
        strides = settings.strides or tuple(COCO_ANCHORS)
        height, width = spec.input_height, spec.input_width
        if any(s < 1 or height % s or width % s for s in strides):
            raise ConfigError(f"model.head.strides: {list(strides)} do not divide the input of {height}×{width}")
        anchors = settings.anchors
        if anchors is None:
            if any(s not in COCO_ANCHORS for s in strides):
                raise ConfigError(
                    f"model.head.anchors: must be given for strides {list(strides)}; only those of 8, 16, 32 are known"
                )
            anchors = tuple(COCO_ANCHORS[s] for s in strides)
        if len(anchors) != len(strides):
            raise ConfigError(f"model.head.anchors: {len(anchors)} rows given for {len(strides)} strides")
        if any(not row or len(row) % 2 or min(row) <= 0 for row in anchors):
            raise ConfigError("model.head.anchors: a row needs positive numbers, w,h an anchor")
        tables = [_grid(s, row, height // s, width // s) for s, row in zip(strides, anchors, strict=True)]
        self._origin, self._stride, self._anchor = (np.concatenate(t) for t in zip(*tables, strict=True))
        if shape[1] != len(self._stride):
            raise ConfigError(
                f"model.head: strides {list(strides)} with {[len(row) // 2 for row in anchors]} anchors make "
                f"{len(self._stride)} rows at input {height}×{width}; {spec.path} has {listed}"
            )
        self._conf, self._multi_label, self._path, self._checked = conf, multi_label, spec.path, False
        self.plan = DecodePlan("yolov5_sigmoid", shape[2] - 5, conf, multi_label, tuple(strides), tuple(anchors))

    def _check(self, rows: Float32Array) -> None:
        least, most = float(rows.min()), float(rows.max())
        if not (least >= -ROUNDING and most <= 1 + ROUNDING):
            raise ModelError(
                f"model {self._path}: declared yolov5_sigmoid, but its output holds values from {least:.3g} to "
                f"{most:.3g}, not 0 to 1: it does not end in a sigmoid. Boxes in input pixels are yolov5_cat: mend "
                "model.head.kind (--head, or the sidecar's head)"
            )
        self._checked = True

    def candidates(self, outputs: Outputs, index: int) -> Candidates:
        """See `Head.candidates`."""
        rows = outputs[0][index]
        if not self._checked:
            self._check(rows)
        (keep,) = np.nonzero(rows[:, 4] >= self._conf)
        if not len(keep):
            return EMPTY
        values = rows[keep]
        centre = (values[:, :2] * 2 + self._origin[keep]) * self._stride[keep, None]
        size = np.square(values[:, 2:4] * 2) * self._anchor[keep]
        return label_boxes(
            corners(centre[:, 0], centre[:, 1], size[:, 0], size[:, 1]),
            values[:, 5:] * values[:, 4:5],
            self._conf,
            multi_label=self._multi_label,
        )


def _grid(
    stride: int, anchors: tuple[float, ...], height: int, width: int
) -> tuple[Float32Array, Float32Array, Float32Array]:
    """Of each row of one stride: column and row of its cell less a half (N, 2), stride (N,), anchor (N, 2)."""
    sizes = np.array(anchors, np.float32).reshape(-1, 2)
    anchor, row, column = np.indices((len(sizes), height, width)).reshape(3, -1)
    origin = np.stack([column, row], axis=1).astype(np.float32) - np.float32(0.5)
    return origin, np.full(len(row), stride, np.float32), sizes[anchor]
