"""YOLOv8's and YOLO11's output: (B, 4+C, N), centre and size in input pixels, class scores, no objectness."""

from __future__ import annotations

import numpy as np

from streamd.errors import ConfigError
from streamd.heads import Yolov8Settings
from streamd.heads.common import EMPTY, as_float32, corners, label_boxes
from streamd.types import Candidates, DecodePlan, ModelSpec, Outputs


class Yolov8:
    """See the module."""

    nms = True

    def __init__(self, settings: Yolov8Settings, spec: ModelSpec, *, conf: float, multi_label: bool) -> None:
        shape = spec.outputs[0].shape
        if len(spec.outputs) != 1 or len(shape) != 3 or shape[1] < 5:
            raise ConfigError(
                f"model.head: yolov8 expects one output of shape (B, 4+C, N); {spec.path} has "
                + ", ".join(f"{t.name}{list(t.shape)}" for t in spec.outputs)
            )
        self._conf, self._multi_label = conf, multi_label
        self.plan = DecodePlan("yolov8", shape[1] - 4, conf, multi_label)

    def candidates(self, outputs: Outputs, index: int) -> Candidates:
        """See `Head.candidates`."""
        columns = as_float32(outputs[0][index])
        (keep,) = np.nonzero(columns[4:].max(axis=0) >= self._conf)
        if not len(keep):
            return EMPTY
        values = columns[:, keep]
        return label_boxes(
            corners(values[0], values[1], values[2], values[3]),
            np.ascontiguousarray(values[4:].T),
            self._conf,
            multi_label=self._multi_label,
        )
