"""YOLOv5's outputs: three (or any number of) raw heads, the same after a sigmoid, and the decoded tensor.

Decoding after the YOLOv5 repository's Detect layer (release 6): xy = (2σ − 0.5 + cell) · stride, wh = (2σ)² · anchor,
score = objectness · class.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from streamd.errors import ConfigError, ModelError
from streamd.heads import Yolov5CatSettings, Yolov5HeadsSettings, Yolov5SigmoidSettings
from streamd.heads.common import EMPTY, as_float32, corners, label_boxes, logit, sigmoid
from streamd.types import Candidates, DecodePlan, Float32Array, FloatArray, ModelSpec, Outputs

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
    """One output a stride, logits of x, y, w, h, objectness, classes: (B, A, H, W, 5+C), or (B, A·(5+C), H, W).

    The latter is how the last convolution leaves them: channel anchor·(5+C)+k.
    """

    nms = True

    def __init__(self, settings: Yolov5HeadsSettings, spec: ModelSpec, *, conf: float, multi_label: bool) -> None:
        shapes = [t.shape for t in spec.outputs]
        listed = ", ".join(f"{t.name}{list(t.shape)}" for t in spec.outputs)
        if any(len(s) not in (4, 5) or min(s[1:]) < 1 or s[-1 if len(s) == 5 else 1] < 6 for s in shapes):
            raise ConfigError(
                "model.head: yolov5_heads expects outputs of shape (B, A, H, W, 5+C) or (B, A·(5+C), H, W); "
                f"{spec.path} has {listed}"
            )
        # Finest first, whatever order the exporter chose: settings list strides and anchors from the finest. Rows and
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
        # What remains of an anchor's channels, by head: 5+C of each must be the same.
        depths = [Fraction(g[1], len(row) // 2) if len(g) == 4 else g[4] for g, row in zip(grids, anchors, strict=True)]
        if len(set(depths)) > 1 or depths[0].denominator > 1 or depths[0] < 6:
            raise ConfigError(
                f"model.head: yolov5_heads with {[len(row) // 2 for row in anchors]} anchors expects that many times "
                f"5+C channels, the same C in each head; {spec.path} has {listed}"
            )
        self._conf, self._multi_label, self._path, self._checked = conf, multi_label, spec.path, False
        self._logit = np.float32(logit(conf))
        self._strides = strides
        self._anchors = [np.array(row, np.float32).reshape(-1, 2) for row in anchors]
        by_output = sorted(range(len(self._order)), key=lambda k: self._order[k])
        self.plan = DecodePlan(
            "yolov5_heads", int(depths[0]) - 5, conf, multi_label,
            tuple(strides[k] for k in by_output), tuple(tuple(anchors[k]) for k in by_output),
        )  # fmt: skip

    def _check(self, heads: Sequence[FloatArray]) -> None:
        """Some exporters end in a sigmoid. In a whole frame, most logits of objectness are negative."""
        values = [head[..., 4] for head in heads]
        least, most = min(float(v.min()) for v in values), max(float(v.max()) for v in values)
        if 0 <= least < most <= 1:
            raise ModelError(
                f"model {self._path}: its outputs have the shape of yolov5_heads, but in a whole frame objectness is "
                f"{least:.3g} to {most:.3g}, where logits are expected: they end in a sigmoid. Export the model "
                "without it"
            )
        self._checked = True

    def candidates(self, outputs: Outputs, index: int) -> Candidates:
        """See `Head.candidates`. Objectness alone bounds the score, so its logit is compared before anything else."""
        heads = [
            _by_cell(outputs[position][index], len(anchors))
            for position, anchors in zip(self._order, self._anchors, strict=True)
        ]
        if not self._checked:
            self._check(heads)
        found_boxes: list[Float32Array] = []
        found_scores: list[Float32Array] = []
        for head, stride, anchors in zip(heads, self._strides, self._anchors, strict=True):
            anchor, row, column = np.nonzero(as_float32(head[..., 4]) >= self._logit)
            if not len(anchor):
                continue
            values = sigmoid(as_float32(head[anchor, row, column]))
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


def _anchors(
    settings: Yolov5HeadsSettings, spec: ModelSpec, strides: Sequence[int], grids: Sequence[tuple[int, ...]]
) -> tuple[tuple[float, ...], ...]:
    """A row for each head, as settings say or as YOLOv5's own strides have them."""
    anchors = settings.anchors
    # Channels do not say how many anchors share them; YOLOv5 has 3.
    counts = [g[1] if len(g) == 5 else 3 for g in grids]
    if anchors is None:
        if any(s not in COCO_ANCHORS for s in strides) or any(n != 3 for n in counts):
            raise ConfigError(
                f"model.head.anchors: must be given for strides {list(strides)} with "
                f"{counts} anchors each; only YOLOv5's own (8, 16, 32 with 3 each) are known"
            )
        return tuple(COCO_ANCHORS[s] for s in strides)
    if len(anchors) != len(grids):
        raise ConfigError(f"model.head.anchors: {len(anchors)} rows given, but {spec.path} has {len(grids)} heads")
    for row, grid in zip(anchors, grids, strict=True):
        if not row or len(row) % 2 or min(row) <= 0 or (len(grid) == 5 and len(row) != 2 * grid[1]):
            needed = f"{2 * grid[1]} positive numbers" if len(grid) == 5 else "positive numbers,"
            raise ConfigError(f"model.head.anchors: a row needs {needed} (w,h an anchor)")
    return anchors


def _by_cell(head: FloatArray, anchors: int) -> FloatArray:
    """(A, H, W, 5+C) of either form of one frame's head; never a copy."""
    return head if head.ndim == 4 else head.reshape(anchors, -1, *head.shape[1:]).transpose(0, 2, 3, 1)


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
        rows = as_float32(outputs[0][index])
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
        rows = as_float32(outputs[0][index])
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
