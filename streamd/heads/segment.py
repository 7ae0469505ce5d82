"""Boxes with masks, as Ultralytics exports YOLOv8-seg, YOLO11-seg and YOLO26-seg.

The extra values of a row are weights of P prototype masks, which are the second output (B, P, H, W). The object is
where the weighted sum, scaled to input pixels, is positive inside the box (Bolya et al. 2019, YOLACT). Masks and their
outlines are computed for published boxes only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from streamd.errors import ConfigError
from streamd.heads import HEADS, DecodeOptions, Head, HeadSettings
from streamd.heads.common import as_float32, listed
from streamd.heads.tasks import TaskHead, TaskSettings
from streamd.imaging.outlines import binary_mask, outline
from streamd.types import Candidates, Details, Float32Array, Letterbox, ModelSpec, Outputs


class _Masks(NamedTuple):
    """Which output has the rows and which the prototypes, and input pixels per value of the latter."""

    rows: int
    prototypes: int
    factor: int


@HEADS.register
class SegmentSettings(TaskSettings):
    """Boxes with masks as exported by Ultralytics: (B, 4+C+P, N), or (B, N, 6+P) after NMS; prototypes (B, P, H, W)."""

    kind: Literal["segment"] = "segment"
    form: ClassVar[str] = "(B, 4+C+P, N) and (B, P, H, W)"
    tasks: ClassVar[tuple[str, ...]] = ("segment",)
    of_boxes: ClassVar[str] = "prototypes"

    @classmethod
    def recognise(cls, spec: ModelSpec) -> HeadSettings | None:
        """See `HeadSettings.recognise`. By the metadata."""
        said = spec.metadata.get("task", "").strip().lower() == "segment"
        return cls() if said and _masks(spec) is not None else None

    def open(self, spec: ModelSpec, options: DecodeOptions) -> Head:
        """See `HeadSettings.open`."""
        masks = _masks(spec)
        if masks is None:
            raise ConfigError(
                "model.head: segment expects rows (B, 4+C+P, N) or (B, N, 6+P) and prototypes (B, P, H, W), the input "
                f"a whole multiple of H and W; {spec.path} has {listed(spec)} at input "
                f"{spec.input_height}×{spec.input_width}"
            )
        extra = spec.outputs[masks.prototypes].shape[1]
        return Segment(spec, options, masks, final=self.is_final(spec.outputs[masks.rows].shape, extra, spec))


def _masks(spec: ModelSpec) -> _Masks | None:
    """None if the outputs are something else."""
    by_rank = {len(t.shape): i for i, t in enumerate(spec.outputs)}
    if len(spec.outputs) != 2 or set(by_rank) != {3, 4}:
        return None
    prototypes = spec.outputs[by_rank[4]].shape
    if min(prototypes[1:]) < 1:
        return None
    factor = spec.input_width // prototypes[3]
    fits = factor >= 1 and (spec.input_height, spec.input_width) == (prototypes[2] * factor, prototypes[3] * factor)
    return _Masks(by_rank[3], by_rank[4], factor) if fits else None


class Segment(TaskHead):
    """See the module."""

    def __init__(self, spec: ModelSpec, options: DecodeOptions, masks: _Masks, *, final: bool) -> None:
        extra = spec.outputs[masks.prototypes].shape[1]
        super().__init__("segment", spec, options, output=masks.rows, extra=extra, final=final)
        self._prototypes, self._factor = masks.prototypes, masks.factor

    def details(self, outputs: Outputs, index: int, kept: Candidates, letterbox: Letterbox) -> Details:
        """See `Head.details`."""
        assert kept.extra is not None
        prototypes = as_float32(outputs[self._prototypes][index])
        polygons = []
        for weights, box in zip(kept.extra, kept.xyxy.tolist(), strict=True):
            mask, x, y = self.mask(weights, prototypes, box)
            points = outline(mask) + np.array((x, y), np.float32)
            polygons.append(letterbox.points_to_source(points, clip=True))
        return Details(polygons=polygons)

    def mask(
        self, weights: Float32Array, prototypes: Float32Array, box: Sequence[float]
    ) -> tuple[npt.NDArray[np.uint8], int, int]:
        """The mask of one object inside its box. Only the part of the prototypes under the box is summed.

        Args:
            weights: (P,)
            prototypes: (P, H, W)
            box: corners in input pixels.

        Returns:
            (mask (h, w) of 0 and 1, x, y): one value per input pixel, and the position of its corner.
        """
        height, width = prototypes.shape[1:]
        f = self._factor
        # One more value on each side, for the interpolation.
        left, top = max(0, math.floor(box[0] / f) - 1), max(0, math.floor(box[1] / f) - 1)
        right, bottom = min(width, math.ceil(box[2] / f) + 1), min(height, math.ceil(box[3] / f) + 1)
        if right <= left or bottom <= top:
            return np.zeros((0, 0), np.uint8), 0, 0
        with np.errstate(invalid="ignore", over="ignore"):  # what is no number is not above 0
            logits = np.tensordot(weights, prototypes[:, top:bottom, left:right], axes=1)
        x, y = left * f, top * f
        mask, dx, dy = binary_mask(logits, f, (box[0] - x, box[1] - y, box[2] - x, box[3] - y))
        return mask, x + dx, y + dy
