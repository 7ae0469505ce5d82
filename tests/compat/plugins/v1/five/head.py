"""Rows of centre, size, score and class."""

from typing import ClassVar, Literal

import numpy as np
from streamd.errors import ConfigError
from streamd.heads import DecodeOptions, Head, HeadSettings
from streamd.heads.common import EMPTY, as_float32, corners
from streamd.types import Candidates, ModelSpec, Outputs


class ScoredSettings(HeadSettings):
    """Rows (B, N, 6) of cx cy w h score class, in input pixels."""

    kind: Literal["scored"] = "scored"
    form: ClassVar[str] = "(B, N, 6)"

    def open(self, spec: ModelSpec, options: DecodeOptions) -> Head:
        return Scored(spec, options)


class Scored(Head):
    def __init__(self, spec: ModelSpec, options: DecodeOptions) -> None:
        if len(spec.outputs) != 1 or len(spec.outputs[0].shape) != 3 or spec.outputs[0].shape[2] != 6:
            raise ConfigError(f"model {spec.path}: expected one output (B, N, 6) for the head scored")
        self._conf = options.conf
        self.classes = len(spec.labels)

    def candidates(self, outputs: Outputs, index: int) -> Candidates:
        rows = as_float32(outputs[0][index])
        rows = rows[rows[:, 4] >= self._conf]
        if not len(rows):
            return EMPTY
        boxes = corners(rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3])
        return Candidates(boxes, np.ascontiguousarray(rows[:, 4]), rows[:, 5].astype(np.int32))
