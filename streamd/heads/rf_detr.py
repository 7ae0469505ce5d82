"""RF-DETR's export: `dets` (B, N, 4), cx cy w h as fractions of the input, and `labels` (B, N, C), logits.

Its COCO models have 91 columns, numbered as COCO numbers its categories (1 to 90 with gaps; `PostProcess` in
`rfdetr/models/lwdetr.py`). Here they are mapped to the usual numbers of the 80 classes.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from streamd.heads import HEADS, DecodeOptions, Head, HeadSettings
from streamd.heads.coco import COCO80
from streamd.heads.common import IMAGENET
from streamd.heads.queries import QueryHead, check_columns, find_pair, require_pair
from streamd.types import ModelSpec

OUTPUTS = frozenset({"dets", "labels"})
"""Names that RF-DETR's exporter gives."""
COCO_CATEGORIES = 91
UNUSED = frozenset({0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
"""Numbers up to 90 that are not used by COCO's detection categories."""
COCO_COLUMNS = tuple(n for n in range(COCO_CATEGORIES) if n not in UNUSED)
"""COCO's category number of each of `COCO80`, in order."""


@HEADS.register
class RfDetrSettings(HeadSettings):
    """RF-DETR's export: dets (B, N, 4), boxes as fractions of the input, and labels (B, N, C), logits."""

    kind: Literal["rf_detr"] = "rf_detr"
    columns: tuple[int, ...] | None = Field(
        None,
        min_length=1,
        description="Column with the scores of each class, in the order of the names. Default: if there are 91 "
        "columns, those of COCO's 80 classes, otherwise all.",
    )
    activated: bool = Field(False, description="The model itself applies the sigmoid: its scores are probabilities.")
    form: ClassVar[str] = "dets (B, N, 4) and labels (B, N, C)"
    usual_input: ClassVar[dict[str, Any]] = {**IMAGENET, "resize": "stretch"}

    @classmethod
    def shapes(cls, height: int, width: int, classes: int) -> tuple[tuple[int, ...], ...]:
        """See `HeadSettings.shapes`."""
        return ((1, 300, 4), (1, 300, classes))

    @classmethod
    def recognise(cls, spec: ModelSpec) -> HeadSettings | None:
        """See `HeadSettings.recognise`."""
        return cls() if {t.name for t in spec.outputs} == OUTPUTS and find_pair(spec) is not None else None

    @classmethod
    def undecodable(cls, spec: ModelSpec) -> str:
        """See `HeadSettings.undecodable`."""
        if len(spec.outputs) == 3 and {t.name for t in spec.outputs} == OUTPUTS | {"masks"}:
            return "are RF-DETR's with masks, which no head here decodes; export its detection model"
        return ""

    def open(self, spec: ModelSpec, options: DecodeOptions) -> Head:
        """See `HeadSettings.open`."""
        pair = require_pair("rf_detr", spec)
        found, columns = spec.outputs[pair.scores].shape[2], self.columns
        if columns is None and found == COCO_CATEGORIES and len(spec.labels) in (0, len(COCO80)):
            columns = COCO_COLUMNS
        columns = check_columns(columns, found, spec)
        return QueryHead("rf_detr", spec, options, pair, found, columns=columns, activated=self.activated)
