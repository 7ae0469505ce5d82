"""RT-DETR as Ultralytics exports it: cx cy w h as fractions of the input, then scores 0..1.

As of version 8.4.190, rows are (B, N, 6): box, score, class number, the best of all queries and classes. Earlier,
they were (B, N, 4+C): box, a score per class.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from streamd.errors import ConfigError
from streamd.heads import HEADS, DecodeOptions, Head, HeadSettings
from streamd.heads.coco import COCO80
from streamd.heads.common import as_float32, check_single, listed
from streamd.heads.queries import FAMILY_INPUT, MOST_QUERIES, Pair, QueryHead
from streamd.types import Candidates, Float32Array, ModelSpec, Outputs

DECODER = "RTDETRDecoder"
"""Value of `head` in the metadata written by newer versions."""
_FINAL = 6
"""Number of columns of rows with score and class number."""


@HEADS.register
class RtdetrSettings(HeadSettings):
    """RT-DETR as exported by Ultralytics, (B, N, 4+C): cx, cy, w, h as fractions of the input, scores from 0 to 1.

    Newer versions export (B, N, 6), with a score and a class number instead.
    """

    kind: Literal["rtdetr"] = "rtdetr"
    final: bool | None = Field(
        None,
        description="Rows of six hold a score and a class number, not the scores of two classes. Default: from the "
        "metadata, otherwise from the number of class names.",
    )
    form: ClassVar[str] = "(B, N, 4+C)"
    usual_input: ClassVar[dict[str, Any]] = FAMILY_INPUT

    @classmethod
    def shapes(cls, height: int, width: int, classes: int) -> tuple[tuple[int, ...], ...]:
        """See `HeadSettings.shapes`."""
        return ((1, 300, 4 + classes),)

    @classmethod
    def recognise(cls, spec: ModelSpec) -> HeadSettings | None:
        """See `HeadSettings.recognise`. Rows of six belong to end_to_end, unless the metadata names the decoder."""
        shapes = [t.shape for t in spec.outputs]
        rows, columns = shapes[0][1:] if len(shapes) == 1 and len(shapes[0]) == 3 else (0, 0)
        if not 1 <= rows <= MOST_QUERIES:
            return None
        if columns == _FINAL:
            return cls() if spec.metadata.get("head") == DECODER else None
        return cls() if columns == 4 + (len(spec.labels) or len(COCO80)) else None

    def open(self, spec: ModelSpec, options: DecodeOptions) -> Head:
        """See `HeadSettings.open`."""
        shape = check_single("rtdetr", "(B, N, 4+C) or (B, N, 6)", spec, lambda shape: shape[2] >= 5)
        if shape[1] > MOST_QUERIES:
            raise ConfigError(f"model.head: rtdetr expects at most {MOST_QUERIES} rows; {spec.path} has {listed(spec)}")
        return Rtdetr(spec, options, final=shape[2] == _FINAL and self._is_final(spec))

    def _is_final(self, spec: ModelSpec) -> bool:
        if self.final is not None:
            return self.final
        if spec.metadata.get("head") == DECODER or len(spec.labels) not in (0, 2):
            return True
        raise ConfigError(
            f"model {spec.path}: rows of six are box, score and class number, or box and the scores of two classes; "
            "declare model.head: {kind: rtdetr, final: true} for the former, final: false for the latter"
        )


class Rtdetr(QueryHead):
    """See the module."""

    def __init__(self, spec: ModelSpec, options: DecodeOptions, *, final: bool) -> None:
        classes = (len(spec.labels) or len(COCO80)) if final else spec.outputs[0].shape[2] - 4
        super().__init__("rtdetr", spec, options, Pair(0, 0), classes, activated=True)
        self._final, self._best_only = final, not options.multi_label

    def candidates(self, outputs: Outputs, index: int) -> Candidates:
        """See `Head.candidates`."""
        rows = as_float32(outputs[0][index])
        if not self._final:
            return self.decode(rows[:, :4], rows[:, 4:])
        found = self.decode(rows[:, :4], rows[:, 4:5])
        (kept,) = np.nonzero(rows[:, 4] >= self._least)
        return self._classed(found, rows[kept, 5])

    def _classed(self, found: Candidates, numbers: Float32Array) -> Candidates:
        """`found` with its class numbers; for a query with several classes, only the best one, unless multi_label is
        set."""
        keep = np.nonzero((numbers >= 0) & (numbers < self.classes))[0]
        keep = keep[np.argsort(-found.score[keep], kind="stable")]
        if self._best_only and len(keep) > 1:
            keep = keep[np.sort(np.unique(found.xyxy[keep], axis=0, return_index=True)[1])]
        return Candidates(found.xyxy[keep], found.score[keep], numbers[keep].astype(np.int32))
