"""Outputs with NMS inside: (B, N, 6), x1 y1 x2 y2 score class, in input pixels (YOLOv10, YOLO26, exports with NMS)."""

from __future__ import annotations

import numpy as np

from streamd.errors import ConfigError
from streamd.heads import EndToEndSettings
from streamd.heads.common import EMPTY, as_float32
from streamd.types import Candidates, DecodePlan, ModelSpec, Outputs


class EndToEnd:
    """See the module. The number of classes is not in the shape: it is that of the labels."""

    nms = False

    def __init__(self, settings: EndToEndSettings, spec: ModelSpec, *, conf: float, multi_label: bool) -> None:
        shape = spec.outputs[0].shape
        if len(spec.outputs) != 1 or len(shape) != 3 or shape[2] != 6:
            raise ConfigError(
                f"model.head: end_to_end expects one output of shape (B, N, 6); {spec.path} has "
                + ", ".join(f"{t.name}{list(t.shape)}" for t in spec.outputs)
            )
        self._conf = conf
        self.plan = DecodePlan("end_to_end", len(spec.labels) or 80, conf, multi_label)

    def candidates(self, outputs: Outputs, index: int) -> Candidates:
        """See `Head.candidates`. Rows whose class the labels do not know are padding and are left out."""
        rows = as_float32(outputs[0][index])
        keep = (rows[:, 4] >= self._conf) & (rows[:, 5] >= 0) & (rows[:, 5] < self.plan.classes)
        if not keep.any():
            return EMPTY
        values = rows[keep]
        return Candidates(
            np.ascontiguousarray(values[:, :4]), np.ascontiguousarray(values[:, 4]), values[:, 5].astype(np.int32)
        )
