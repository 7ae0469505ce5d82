"""RT-DETR (v1, v2), D-FINE and DEIM without post-processing: logits (B, N, C) and boxes (B, N, 4), in either order.

Boxes are cx cy w h, fractions of the input; scores are sigmoids of the logits (RTDETRPostProcessor,
DFINEPostProcessor). Hugging Face's exporter produces the same (`logits`, `pred_boxes`)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from streamd.heads import HEADS, DecodeOptions, Head, HeadSettings
from streamd.heads.queries import FAMILY_INPUT, QueryHead, check_columns, find_pair, require_pair
from streamd.heads.rf_detr import OUTPUTS as RF_DETR_OUTPUTS
from streamd.types import ModelSpec


@HEADS.register
class DetrSettings(HeadSettings):
    """RT-DETR, D-FINE and DEIM without post-processing: logits (B, N, C), and boxes (B, N, 4) as fractions of the
    input."""

    kind: Literal["detr"] = "detr"
    activated: bool = Field(False, description="The model itself applies the sigmoid: its scores are probabilities.")
    columns: tuple[int, ...] | None = Field(
        None, min_length=1, description="Column with the scores of each class, in the order of the names. Default: all."
    )
    form: ClassVar[str] = "(B, N, C) and (B, N, 4)"
    usual_input: ClassVar[dict[str, Any]] = FAMILY_INPUT

    @classmethod
    def shapes(cls, height: int, width: int, classes: int) -> tuple[tuple[int, ...], ...]:
        """See `HeadSettings.shapes`."""
        return ((1, 300, classes), (1, 300, 4))

    @classmethod
    def recognise(cls, spec: ModelSpec) -> HeadSettings | None:
        """See `HeadSettings.recognise`. RF-DETR's outputs differ by their names."""
        if find_pair(spec) is None or {t.name for t in spec.outputs} == RF_DETR_OUTPUTS:
            return None
        return cls()

    def open(self, spec: ModelSpec, options: DecodeOptions) -> Head:
        """See `HeadSettings.open`."""
        pair = require_pair("detr", spec)
        found = spec.outputs[pair.scores].shape[2]
        columns = check_columns(self.columns, found, spec)
        return QueryHead("detr", spec, options, pair, found, columns=columns, activated=self.activated)
